"""The wider D-FINE alone."""

from detectron2.config import LazyCall as L

from mokd_det.balancing import FixedWeights

from ..common.objectives import mokd_transformers as mokd
from .common import d_fine, dataloader, lr_multiplier, optimizer, train

model = d_fine(64, layers=2)
objectives, balancer = dict(task=mokd.objectives.task), L(FixedWeights)()
train.max_iter = 150
train.output_dir = "output/digits_pairs/d_fine_teacher"
