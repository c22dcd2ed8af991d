"""DeiT-S alone on ImageNet-1k, 300 epochs, batch 1024."""

from .deit_tiny import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.network.name = "deit_small_patch16_224"
train.output_dir = "output/deit_small"
