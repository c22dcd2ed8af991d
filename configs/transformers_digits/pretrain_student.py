"""The student's first weights: a D-FINE of digits that does not tell them apart, from the scenes of ``digits``."""

from detectron2.config import LazyCall as L

from mokd_det.data import without_classes

from .common import balancer, dataloader, lr_multiplier, objectives, optimizer, train
from .common import d_fine as model

model.class_names = ["digit"]
dataloader.train.dataset = L(without_classes)(dataset="digits_train")
dataloader.test = dataloader.evaluator = None
train.eval_period = 0
train.output_dir = "output/transformers_digits/pretrain_student"
