"""Token matching (ViDT): ViDT-small from ViDT-base on COCO, 50 epochs, batch 16."""

from mokd_det.modeling.backbone import swin_small

from .token_matching_vidt_nano import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.student.backbone._target_ = swin_small
train.init_checkpoint = "checkpoints/swin_small_patch4_window7_224.pth"
train.output_dir = "output/token_matching_vidt_small"
