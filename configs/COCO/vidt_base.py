"""ViDT-base alone on COCO, 50 epochs, batch 16."""

from mokd_det.modeling.backbone import swin_base

from .vidt_nano import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.backbone._target_ = swin_base
train.init_checkpoint = "checkpoints/swin_base_patch4_window7_224_22k.pth"
train.output_dir = "output/vidt_base"
