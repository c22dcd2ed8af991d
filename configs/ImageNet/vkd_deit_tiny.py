"""VkD: DeiT-Ti from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import VkD

from ..common.classification import plain_sum
from .mokd_deit_tiny import dataloader, lr_multiplier, model, objectives, optimizer, train

model.method.parts.kd = L(VkD)(task="classification")
balancer = plain_sum.balancer
train.output_dir = "output/vkd_deit_tiny"
