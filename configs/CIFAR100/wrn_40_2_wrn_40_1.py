"""WRN-40-1 from WRN-40-2 on CIFAR-100: MoKD, or any method and recipe by choice.method=... choice.recipe=..."""

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
    student="wrn_40_1",
    teacher="wrn_40_2",
    teacher_checkpoint="checkpoints/wrn_40_2_vanilla/ckpt_epoch_240.pth",
    train_images=50000,
    negatives=16384,  # of CRD
    # published weights
    dkd_beta=6.0,
    review=5.0,
    review_pp=dict(kd=5.0, nd=4.0),
    kd_pp=dict(kd=1.0, nd=1.5),
    dkd_pp=dict(alpha=1.0, beta=6.0, nd=1.0),
    student_pre="pre",
    middle_stride=2,  # of USKD's weak head
)
