"""The teacher alone, on Fashion-MNIST."""

from ..common.classification import alone
from .common import dataloader, lr_multiplier, optimizer, train
from .common import teacher as model

objectives, balancer = alone.objectives, alone.balancer
train.output_dir = "output/fashion_mnist/teacher"
