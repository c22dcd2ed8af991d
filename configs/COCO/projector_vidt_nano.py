"""A projector baseline (Fig. 6): ViDT-nano from ViDT-base on COCO, 50 epochs, batch 16.

``model.method.projector=linear``, ``orthogonal``, ``mlp`` or ``ensemble`` chooses the projector, and
``train.output_dir=...`` its directory. The paper draws this figure for classification; the loss is the same.
"""

from detectron2.config import LazyCall as L

from mokd_det.distillation import ProjectorMatching

from ..common.objectives import published
from .mokd_vidt_nano import dataloader, lr_multiplier, model, objectives, optimizer, train

model.method = L(ProjectorMatching)(projector="linear")
balancer = published.balancer
train.output_dir = "output/projector_linear_vidt_nano"
