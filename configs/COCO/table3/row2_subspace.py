"""Table 3, row 2, + subspace learning: ViDT-nano from ViDT-base on COCO."""

from ...common.objectives import published
from .row3_multi_task import dataloader, lr_multiplier, model, objectives, optimizer, train

balancer = published.balancer
train.output_dir = "output/table3/row2_subspace"
