"""The teacher of the comparison: the larger pretrained D-FINE."""

from .common import balancer, dataloader, lr_multiplier, objectives, optimizer, pretrained, train

model = pretrained("teacher")
train.max_iter = 250
train.output_dir = "output/transformers_digits/teacher"
