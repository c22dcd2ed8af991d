"""DTO-KD as its public summaries describe it: DeiT-S from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from .dto_kd_deit_tiny import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.student.network.name = "deit_small_distilled_patch16_224"
train.output_dir = "output/dto_kd_deit_small"
