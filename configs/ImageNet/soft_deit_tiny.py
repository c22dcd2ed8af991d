"""DeiT's soft distillation, as in its code: DeiT-Ti from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import LogitDistillation

from ..common.classification import dist_token, mean
from .mokd_deit_tiny import dataloader, lr_multiplier, model, objectives, optimizer, train

model.method = L(LogitDistillation)(temperature=1.0, reduction="numel")
model.taps = dict(logits=dist_token)
balancer = mean.balancer
train.output_dir = "output/soft_deit_tiny"
