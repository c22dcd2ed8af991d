"""MoKD: DeiT-Ti from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.classification import mokd, token_and_features, with_logits
from ..common.imagenet import dataloader
from ..common.schedule_deit import lr_multiplier, optimizer, train
from ..common.timm_classifiers import regnety_160 as teacher
from ..common.timm_classifiers import regnety_160_checkpoint
from ..common.timm_classifiers import tiny_distilled as student

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint=regnety_160_checkpoint,
    method=with_logits(L(MoKD)(task="classification"), temperature=1.0),
    taps=token_and_features,
)
objectives, balancer = mokd.objectives, mokd.balancer
train.output_dir = "output/mokd_deit_tiny"
