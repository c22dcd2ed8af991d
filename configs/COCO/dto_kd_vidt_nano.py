"""DTO-KD (ICLR 2026) as its public summaries describe it: ViDT-nano from ViDT-base on COCO, 50 epochs, batch 16.

A reading of abstract, reviews and summaries; neither its text nor code was at hand: docs/readings.md. A projector P per
tap and level in the place of two subspaces and D, the amortised balancer, gradient clipping (ViDT's). P is VkD's; a
linear one is ``model.method.projector=linear``, a fixed one ``'model.method.options={trainable: false}'``.
"""

from detectron2.config import LazyCall as L

from mokd_det.distillation import ProjectorMatching

from .mokd_vidt_nano import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.method = L(ProjectorMatching)(projector="orthogonal", norm="standardize", student_norm="after")
train.output_dir = "output/dto_kd_vidt_nano"
