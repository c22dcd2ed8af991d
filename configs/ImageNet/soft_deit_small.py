"""DeiT's soft distillation, as in its code: DeiT-S from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, LogitDistillation

from ..common.classification import dist_token, mean
from ..common.imagenet import dataloader
from ..common.schedule_deit import lr_multiplier, optimizer, train
from ..common.timm_classifiers import regnety_160 as teacher
from ..common.timm_classifiers import regnety_160_checkpoint
from ..common.timm_classifiers import small_distilled as student

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint=regnety_160_checkpoint,
    method=L(LogitDistillation)(temperature=1.0, reduction="numel"),
    taps=dict(logits=dist_token),
)
objectives, balancer = mean["objectives"], mean["balancer"]
train["output_dir"] = "output/soft_deit_small"
