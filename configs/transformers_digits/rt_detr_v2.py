"""A small RT-DETRv2 from random weights on all scenes of ``digits_few``."""

from .common import balancer, dataloader, lr_multiplier, objectives, optimizer, train
from .common import rt_detr_v2 as model

train.output_dir = "output/transformers_digits/rt_detr_v2"
