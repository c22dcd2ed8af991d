"""VkD: ViDT-tiny from ViDT-base on COCO, 50 epochs, batch 16."""

from mokd_det.modeling.backbone import swin_tiny

from .vkd_vidt_nano import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.student.backbone._target_ = swin_tiny
train.init_checkpoint = "checkpoints/swin_tiny_patch4_window7_224.pth"
train.output_dir = "output/vkd_vidt_tiny"
