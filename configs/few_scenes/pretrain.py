"""The student's first weights: a detector of digits that does not tell them apart, from 12,000 scenes of ``digits``."""

from detectron2.config import LazyCall as L

from mokd_det.data import without_classes

from .common import alone, dataloader, lr_multiplier, optimizer, train
from .common import student as model

objectives, balancer = alone.objectives, alone.balancer
model.num_classes = 1
dataloader.train.dataset = L(without_classes)(dataset="digits_train")
dataloader.test = dataloader.evaluator = None
optimizer.lr = 2e-3
optimizer.fused = False
train.max_iter = 800
train.eval_period = 0
train.output_dir = "output/few_scenes/pretrain"
