"""The teacher alone."""

from omegaconf import DictConfig

from ..common.classification import alone
from .common import dataloader, lr_multiplier, networks, optimizer, pair, train

model = DictConfig("${networks.teacher.model}")
objectives, balancer = alone.objectives, alone.balancer
train.output_dir = "output/fashion_pairs/teacher"
