"""Decoupled logit distillation (DKD): ViDT-nano from ViDT-base on COCO, 50 epochs, batch 16."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import DKD, Distiller

from ..common.coco import dataloader
from ..common.objectives import published
from ..common.schedule import lr_multiplier, optimizer, train
from ..common.vidt import base as teacher
from ..common.vidt import nano as student

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint="checkpoints/vidt_base_50.pth",
    # queries have no labels: the target is the teacher's class; ViDT's classes are binary classifiers of their own
    method=L(DKD)(temperature=1.0, target="teacher", head="sigmoid"),
    taps=dict(logits="head_logits"),  # of every decoder level
)
objectives, balancer = published["objectives"], published["balancer"]
train["init_checkpoint"] = (
    "checkpoints/swin_nano_patch4_window7_224.pth"  # ImageNet weights of the student's backbone
)
train["output_dir"] = "output/dkd_vidt_nano"
