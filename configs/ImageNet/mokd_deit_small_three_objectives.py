"""MoKD with three objectives, kl, kd and cls: DeiT-S from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from .mokd_deit_tiny_three_objectives import (
    balancer,
    dataloader,
    lr_multiplier,
    model,
    objectives,
    optimizer,
    train,
)

model.student.network.name = "deit_small_distilled_patch16_224"
train.output_dir = "output/mokd_deit_small_three_objectives"
