"""MoKD with three objectives, kl, kd and cls: DeiT-Ti from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from ..common.classification import mokd_three_objectives
from .mokd_deit_tiny import balancer, dataloader, lr_multiplier, model, optimizer, train

objectives = mokd_three_objectives.objectives
train.output_dir = "output/mokd_deit_tiny_three_objectives"
