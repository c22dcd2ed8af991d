"""Token matching (ViDT): ViDT-tiny from ViDT-base on COCO, 50 epochs, batch 16."""

from mokd_det.modeling.backbone import swin_tiny

from .token_matching_vidt_nano import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.student.backbone._target_ = swin_tiny
train.init_checkpoint = "checkpoints/swin_tiny_patch4_window7_224.pth"
train.output_dir = "output/token_matching_vidt_tiny"
