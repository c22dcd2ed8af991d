"""The teacher: twice the channels, and 4,000 scenes with classes."""

from .common import alone, dataloader, lr_multiplier, optimizer, train
from .common import teacher as model

objectives, balancer = alone.objectives, alone.balancer
dataloader.train.draw = dict(count=4000, seed=0)
optimizer.lr = 2e-3
train.max_iter = 700
train.output_dir = "output/few_scenes/teacher"
