"""MoKD: DeiT-Ti from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Combined, Distiller, LogitDistillation, MoKD

from ..common.classification import mokd, token_and_features
from ..common.imagenet import dataloader
from ..common.schedule_deit import lr_multiplier, optimizer, train
from ..common.timm_classifiers import regnety_160 as teacher
from ..common.timm_classifiers import regnety_160_checkpoint
from ..common.timm_classifiers import tiny_distilled as student

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint=regnety_160_checkpoint,
    method=L(Combined)(
        parts=dict(kd=L(MoKD)(task="classification"), kl=L(LogitDistillation)(temperature=1.0)),
        taps=dict(kd=["pooled"], kl=["logits"]),
    ),
    taps=token_and_features,
)
objectives, balancer = mokd.objectives, mokd.balancer
train.output_dir = "output/mokd_deit_tiny"
