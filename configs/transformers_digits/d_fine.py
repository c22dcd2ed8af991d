"""A small D-FINE from random weights on all scenes of ``digits_few``."""

from .common import balancer, dataloader, lr_multiplier, objectives, optimizer, train
from .common import d_fine as model

train.output_dir = "output/transformers_digits/d_fine"
