"""ShuffleNet v1 from ResNet-32x4 on CIFAR-100: MoKD, or any method and recipe by choice.method=... choice.recipe=..."""

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
    student="ShuffleV1",
    teacher="resnet32x4",
    teacher_checkpoint="checkpoints/resnet32x4_vanilla/ckpt_epoch_240.pth",
    train_images=50000,
    negatives=16384,  # of CRD
    # published weights
    dkd_beta=8.0,
    review=5.0,
    review_pp=dict(kd=7.0, nd=1.0),
    kd_pp=dict(kd=2.5, nd=1.5),
    dkd_pp=dict(alpha=0.5, beta=8.0, nd=4.0),
    student_pre="pre",
    middle_stride=4,  # of USKD's weak head
)
