"""The larger teacher alone, for longer."""

from ..common.objectives import alone
from .common import dataloader, lr_multiplier, optimizer, train
from .common import teacher as model

objectives, balancer = alone.objectives, alone.balancer
train.max_iter = 1000
train.output_dir = "output/quickstart/teacher"
