"""DTO-KD as its public summaries describe it: DeiT-Ti from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024.

A reading of abstract, reviews and summaries: docs/readings.md and ../COCO/dto_kd_vidt_nano.py. Its clipping's norm is
not known; 1.0 is ours.
"""

from detectron2.config import LazyCall as L

from mokd_det.distillation import ProjectorMatching

from .mokd_deit_tiny import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.method.parts.kd = L(ProjectorMatching)(projector="orthogonal", options=dict(affine=False))
train.clip_grad = dict(max_norm=1.0, norm_type=2.0)
train.output_dir = "output/dto_kd_deit_tiny"
