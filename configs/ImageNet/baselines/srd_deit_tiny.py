"""SRD: DeiT-Ti from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import SRD

from ...common.classification import plain_sum
from ..mokd_deit_tiny import dataloader, lr_multiplier, model, objectives, optimizer, train

model.method.parts.kd = L(SRD)(log=True)  # as published; a balancer of logarithms takes its own, of log=False
balancer = plain_sum.balancer
train.output_dir = "output/srd_deit_tiny"
