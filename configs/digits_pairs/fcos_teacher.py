"""The wider and deeper FCOS alone."""

from ..common.objectives import alone
from ..common.objectives import mokd_convolutional as mokd
from .common import dataloader, fcos, lr_multiplier, optimizer, train

model = fcos(16, depth=2)
objectives, balancer = dict(task=mokd.objectives.task), alone.balancer
train.max_iter = 150
train.output_dir = "output/digits_pairs/fcos_teacher"
