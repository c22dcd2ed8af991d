"""The larger detector alone, for longer."""

from ..common.objectives import alone
from .common import data, dataloader, from_data, lr_multiplier, optimizer, train
from .common import teacher as model

objectives, balancer = alone.objectives, alone.balancer
train.max_iter = 3000
train.output_dir = "output/photographs/teacher"
