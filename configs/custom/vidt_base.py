"""ViDT-base alone, on your own data."""

from mokd_det.modeling.backbone import swin_base

from .vidt_nano import (
    balancer,
    data,
    dataloader,
    from_data,
    lr_multiplier,
    model,
    objectives,
    optimizer,
    train,
)

model.backbone._target_ = swin_base
train.init_checkpoint = "checkpoints/vidt_base_50.pth"  # or ImageNet weights of the backbone
train.output_dir = "output/custom/vidt_base"
