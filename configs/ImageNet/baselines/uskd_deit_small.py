"""USKD: DeiT-S without a teacher on ImageNet-1k, 300 epochs, batch 1024."""

from .uskd_deit_tiny import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.student.network.name = "deit_small_patch16_224"
model.taps.middle.channels = 384
train.output_dir = "output/uskd_deit_small"
