"""VkD: ViDT-nano from ViDT-small on COCO, 50 epochs, batch 16."""

from mokd_det.modeling.backbone import swin_small

from .vkd_vidt_nano import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.teacher.backbone._target_ = swin_small
model.teacher_checkpoint = "checkpoints/vidt_small_50.pth"
train.output_dir = "output/vkd_vidt_nano_from_small"
