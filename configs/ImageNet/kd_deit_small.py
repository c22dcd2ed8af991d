"""Plain KD, without a distillation token: DeiT-S from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, LogitDistillation

from ..common.classification import plain_sum
from ..common.imagenet import dataloader
from ..common.schedule_deit import lr_multiplier, optimizer, train
from ..common.timm_classifiers import regnety_160 as teacher
from ..common.timm_classifiers import regnety_160_checkpoint
from ..common.timm_classifiers import small as student

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint=regnety_160_checkpoint,
    method=L(LogitDistillation)(temperature=1.0),
    taps=dict(logits="logits"),
)
objectives, balancer = plain_sum["objectives"], plain_sum["balancer"]
train["output_dir"] = "output/kd_deit_small"
