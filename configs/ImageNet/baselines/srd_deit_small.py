"""SRD: DeiT-S from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from .srd_deit_tiny import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.student.network.name = "deit_small_distilled_patch16_224"
train.output_dir = "output/srd_deit_small"
