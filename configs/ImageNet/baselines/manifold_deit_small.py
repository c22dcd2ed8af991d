"""Manifold distillation: DeiT-S from CaiT-S24 on ImageNet-1k, 300 epochs, batch 1024."""

from .manifold_deit_tiny import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.student.network.name = "deit_small_patch16_224"
train.output_dir = "output/manifold_deit_small"
