"""The wider D-FINE alone."""

from ..common.objectives import alone
from ..common.objectives import mokd_transformers as mokd
from .common import d_fine, dataloader, lr_multiplier, optimizer, train

model = d_fine(64, layers=2)
objectives, balancer = dict(task=mokd.objectives.task), alone.balancer
train.max_iter = 150
train.output_dir = "output/digits_pairs/d_fine_teacher"
