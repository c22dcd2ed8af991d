"""MaskedKD: DeiT-S from DeiT3-B, which sees half of the patches, on ImageNet-1k, 300 epochs, batch 1024."""

from .masked_kd_deit_tiny import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.student.network.name = "deit_small_patch16_224"
model.teacher.network.name = "deit3_base_patch16_224.fb_in1k"
model.teacher_checkpoint = "checkpoints/deit3_base_patch16_224.fb_in1k.safetensors"
model.taps.attention.channels = 3 * 384
train.output_dir = "output/masked_kd_deit_small"
