"""Plain KD, without a distillation token: DeiT-S from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from .kd_deit_tiny import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.student.network.name = "deit_small_patch16_224"
train.output_dir = "output/kd_deit_small"
