"""The same student with VkD: orthogonally projected features and logits, in the published plain sum."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import VkD

from ..common.classification import plain_sum
from .mokd import dataloader, lr_multiplier, model, objectives, optimizer, train

model.method.parts.kd = L(VkD)(task="classification")
balancer = plain_sum.balancer
train.output_dir = "output/quickstart_classification/vkd"
