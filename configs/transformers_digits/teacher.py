"""The teacher of the comparison: the larger pretrained D-FINE."""

from .common import balancer, dataloader, lr_multiplier, objectives, optimizer, pretrained, train

model = pretrained("teacher")
dataloader.train.total_batch_size = 16
optimizer.lr = 4e-3
train.max_iter = 250
train.output_dir = "output/transformers_digits/teacher"
