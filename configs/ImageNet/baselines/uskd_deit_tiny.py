"""USKD: DeiT-Ti without a teacher on ImageNet-1k, 300 epochs, batch 1024."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import USKD, Distiller

from ...common.classification import plain_sum
from ...common.imagenet import dataloader
from ...common.schedule_deit import lr_multiplier, optimizer, train
from ...common.timm_classifiers import tiny as student

model = L(Distiller)(
    student=student,
    teacher=None,
    method=L(USKD)(mixed_labels=True),
    taps=dict(
        logits="logits",
        # the CLS token halfway; the text does not say which layer
        middle=dict(path="network.blocks.5", channels=192, num_tokens=197),
    ),
)
objectives = dict(
    distill=dict(loss_distill_target=1.0, loss_distill_nontarget=0.1, loss_distill_weak=0.005),
    task=["loss_cls"],
)
balancer = plain_sum.balancer
train.output_dir = "output/uskd_deit_tiny"
