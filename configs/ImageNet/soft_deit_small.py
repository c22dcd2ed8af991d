"""DeiT's soft distillation, as in its code: DeiT-S from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from .soft_deit_tiny import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.student.network.name = "deit_small_distilled_patch16_224"
train.output_dir = "output/soft_deit_small"
