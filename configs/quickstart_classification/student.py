"""The small student alone."""

from ..common.classification import alone
from .common import dataloader, lr_multiplier, optimizer, train
from .common import student as model

objectives, balancer = alone.objectives, alone.balancer
train.output_dir = "output/quickstart_classification/student"
