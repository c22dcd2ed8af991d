"""ResNet-8x4 from ResNet-32x4 on CIFAR-100: MoKD, or any method and recipe by choice.method=... choice.recipe=..."""

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
    student="resnet8x4",
    teacher="resnet32x4",
    teacher_checkpoint="checkpoints/resnet32x4_vanilla/ckpt_epoch_240.pth",
    train_images=50000,
    negatives=16384,  # of CRD
    # published weights
    dkd_beta=8.0,
    review=5.0,
    review_pp=dict(kd=8.0, nd=1.0),
    kd_pp=dict(kd=3.5, nd=2.0),
    dkd_pp=dict(alpha=2.0, beta=8.0, nd=0.5),
    student_pre="pre",
    middle_stride=2,  # of USKD's weak head
)
