"""Token matching (ViDT): ViDT-nano from ViDT-base on COCO, 50 epochs, batch 16."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import TokenMatching

from ..common.objectives import published
from .mokd_vidt_nano import dataloader, lr_multiplier, model, objectives, optimizer, train

model.method = L(TokenMatching)()
balancer = published.balancer
train.output_dir = "output/token_matching_vidt_nano"
