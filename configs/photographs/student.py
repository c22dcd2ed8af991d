"""The small detector alone."""

from ..common.objectives import alone
from .common import data, dataloader, from_data, lr_multiplier, optimizer, train
from .common import student as model

objectives, balancer = alone.objectives, alone.balancer
train.output_dir = "output/photographs/student"
