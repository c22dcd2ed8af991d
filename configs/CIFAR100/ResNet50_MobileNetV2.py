"""MobileNetV2 from ResNet-50 on CIFAR-100: MoKD, or any method and recipe by choice.method=... choice.recipe=..."""

from ..common.cifar_distillation import (
    balancer,
    choice,
    dataloader,
    lr_multiplier,
    methods,
    model,
    networks,
    objectives,
    optimizer,
    pair,
    recipes,
    train,
    warmup_epochs,
)

pair.update(
    student="MobileNetV2",
    teacher="ResNet50",
    teacher_checkpoint="checkpoints/ResNet50_vanilla/ckpt_epoch_240.pth",
    train_images=50000,
    negatives=16384,  # of CRD
    # published weights
    dkd_beta=8.0,
    review=6.0,  # not published; that of ReviewKD++
    review_pp=dict(kd=6.0, nd=2.0),
    kd_pp=dict(kd=3.0, nd=0.5),
    dkd_pp=dict(alpha=0.5, beta=8.0, nd=1.0),
    student_pre="maps",  # linear bottlenecks: nothing is activated after them
    middle_stride=4,  # of USKD's weak head
)
