"""Token matching (ViDT): ViDT-tiny from ViDT-small on COCO, 50 epochs, batch 16."""

from mokd_det.modeling.backbone import swin_small

from .token_matching_vidt_tiny import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.teacher.backbone._target_ = swin_small
model.teacher_checkpoint = "checkpoints/vidt_small_50.pth"
train.output_dir = "output/token_matching_vidt_tiny_from_small"
