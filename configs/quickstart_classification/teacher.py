"""The teacher alone."""

from ..common.classification import alone
from .common import dataloader, lr_multiplier, optimizer, train
from .common import teacher as model

objectives, balancer = alone.objectives, alone.balancer
train.max_iter = 300
train.output_dir = "output/quickstart_classification/teacher"
