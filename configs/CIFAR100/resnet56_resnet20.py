"""ResNet-20 from ResNet-56 on CIFAR-100: MoKD, or any method and recipe by choice.method=... choice.recipe=..."""

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
    student="resnet20",
    teacher="resnet56",
    teacher_checkpoint="checkpoints/resnet56_vanilla/ckpt_epoch_240.pth",
    train_images=50000,
    negatives=16384,  # of CRD
    # published weights
    dkd_beta=2.0,
    review=0.6,
    review_pp=dict(kd=1.2, nd=1.0),
    kd_pp=dict(kd=1.0, nd=2.0),
    dkd_pp=dict(alpha=2.5, beta=4.0, nd=3.5),
    student_pre="pre",
    middle_stride=2,  # of USKD's weak head
)
