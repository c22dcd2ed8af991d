"""Plain KD, without a distillation token: DeiT-Ti from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import LogitDistillation

from ..common.classification import plain_sum
from .mokd_deit_tiny import dataloader, lr_multiplier, model, objectives, optimizer, train

model.student.network.name = "deit_tiny_patch16_224"
model.method = L(LogitDistillation)(temperature=1.0)
model.taps = dict(logits="logits")
balancer = plain_sum.balancer
train.output_dir = "output/kd_deit_tiny"
