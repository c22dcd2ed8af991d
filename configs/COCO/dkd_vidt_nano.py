"""Decoupled logit distillation (DKD): ViDT-nano from ViDT-base on COCO, 50 epochs, batch 16."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import DKD

from ..common.objectives import published
from .mokd_vidt_nano import dataloader, lr_multiplier, model, objectives, optimizer, train

# queries have no labels: the target is the teacher's class; ViDT's classes are binary classifiers of their own
model.method = L(DKD)(temperature=1.0, target="teacher", head="sigmoid")
model.taps = dict(logits="head_logits")  # of every decoder level
balancer = published.balancer
train.output_dir = "output/dkd_vidt_nano"
