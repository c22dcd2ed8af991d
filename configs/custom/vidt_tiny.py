"""ViDT-tiny alone, on your own data."""

from mokd_det.modeling.backbone import swin_tiny

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

model.backbone._target_ = swin_tiny
train.init_checkpoint = "checkpoints/vidt_tiny_50.pth"  # or ImageNet weights of the backbone
train.output_dir = "output/custom/vidt_tiny"
