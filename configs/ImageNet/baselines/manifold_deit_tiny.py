"""Manifold distillation: DeiT-Ti from CaiT-S24 on ImageNet-1k, 300 epochs, batch 1024."""

from detectron2.config import LazyCall as L

from mokd_det.balancing import FixedWeights
from mokd_det.distillation import Combined, Distiller, LogitDistillation, Manifold

from ...common.imagenet import dataloader
from ...common.schedule_deit import lr_multiplier, optimizer, train
from ...common.timm_classifiers import timm_classifier

model = L(Distiller)(
    student=timm_classifier("deit_tiny_patch16_224", drop_path_rate=0.0),
    teacher=timm_classifier("cait_s24_224.fb_dist_in1k"),
    teacher_checkpoint="checkpoints/cait_s24_224.fb_dist_in1k.safetensors",
    method=L(Combined)(
        parts=dict(
            tokens=L(Manifold)(
                student_layers=[0, 1, 2, 3, 8, 9, 10, 11],
                teacher_layers=[0, 1, 2, 3, 20, 21, 22, 23],
                num_random=192,
            ),
            kl=L(LogitDistillation)(temperature=1.0, reduction="numel"),  # as DeiT's code, which it builds on
        ),
        taps=dict(tokens=["tokens"], kl=["logits"]),
    ),
    taps=dict(tokens="tokens", logits="logits"),
)
objectives = dict(
    distill=dict(
        loss_distill_tokens_patch=4.0,
        loss_distill_tokens_sample=0.1,
        loss_distill_tokens_random=0.2,
        loss_distill_kl_kl=1.0,
    ),
    task=["loss_cls"],
)
# as published, the labels teach nothing
balancer = L(FixedWeights)(weights=dict(distill=1.0, task=0.0))
train.output_dir = "output/manifold_deit_tiny"
