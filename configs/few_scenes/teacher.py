"""The teacher: twice the channels, from scratch; in the comparison on a draw of 4,000 scenes."""

from .common import alone, dataloader, lr_multiplier, optimizer, train
from .common import teacher as model

objectives, balancer = alone.objectives, alone.balancer
optimizer.lr = 2e-3
train.max_iter = 700
train.output_dir = "output/few_scenes/teacher"
