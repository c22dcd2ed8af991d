"""VkD: ViDT-nano from ViDT-base on COCO, 50 epochs, batch 16."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import VkD

from ..common.objectives import published
from .mokd_vidt_nano import dataloader, lr_multiplier, model, objectives, optimizer, train

model.method = L(VkD)()
balancer = published.balancer
train.output_dir = "output/vkd_vidt_nano"
