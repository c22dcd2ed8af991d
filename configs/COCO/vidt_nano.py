"""ViDT-nano alone on COCO, 50 epochs, batch 16."""

from ..common.coco import dataloader
from ..common.objectives import alone
from ..common.schedule import lr_multiplier, optimizer, train
from ..common.vidt import nano as model

objectives, balancer = alone.objectives, alone.balancer
train.init_checkpoint = "checkpoints/swin_nano_patch4_window7_224.pth"  # ImageNet weights of the backbone
train.output_dir = "output/vidt_nano"
