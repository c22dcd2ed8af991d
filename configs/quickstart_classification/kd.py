"""The same student with plain distillation of the teacher's logits."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import LogitDistillation

from ..common.classification import plain_sum
from .mokd import dataloader, lr_multiplier, model, objectives, optimizer, train

model.method = L(LogitDistillation)()
model.taps = dict(logits="logits")
balancer = plain_sum.balancer
train.output_dir = "output/quickstart_classification/kd"
