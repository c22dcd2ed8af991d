"""The six pairs of networks of the CIFAR distillation literature, with the published weights that differ."""

from typing import Any


def pair(
    student: str, teacher: str, *, student_pre: str = "pre", middle_stride: int = 2, **weights: Any
) -> dict[str, Any]:
    """One pair.

    Args:
        student: name in cifar_networks.py.
        teacher: name there, and of its published checkpoint.
        student_pre: the student's maps that OFD compares; "maps" where nothing is activated after them.
        middle_stride: of USKD's weak head.
        weights: ``dkd_beta`` of DKD's second term, ``review`` of ReviewKD; ``review_pp`` and ``kd_pp`` of ReviewKD++
            and KD++, their own and ND's; ``dkd_pp`` of DKD++, alpha, beta, and ND's.
    """
    for key in ("review_pp", "kd_pp", "dkd_pp"):
        parts = ("alpha", "beta", "nd") if key == "dkd_pp" else ("kd", "nd")
        weights[key] = dict(zip(parts, weights[key]))
    return dict(
        student=student,
        teacher=teacher,
        teacher_checkpoint=f"checkpoints/{teacher}_vanilla/ckpt_epoch_240.pth",
        num_classes=100,
        train_images=50000,
        negatives=16384,  # of CRD
        student_pre=student_pre,
        middle_stride=middle_stride,
        **weights,
    )


# fmt: off
pairs = dict(
    resnet56_resnet20=pair(
        "resnet20", "resnet56",
        dkd_beta=2.0, review=0.6, review_pp=(1.2, 1.0), kd_pp=(1.0, 2.0), dkd_pp=(2.5, 4.0, 3.5),
    ),
    wrn_40_2_wrn_40_1=pair(
        "wrn_40_1", "wrn_40_2",
        dkd_beta=6.0, review=5.0, review_pp=(5.0, 4.0), kd_pp=(1.0, 1.5), dkd_pp=(1.0, 6.0, 1.0),
    ),
    resnet32x4_resnet8x4=pair(
        "resnet8x4", "resnet32x4",
        dkd_beta=8.0, review=5.0, review_pp=(8.0, 1.0), kd_pp=(3.5, 2.0), dkd_pp=(2.0, 8.0, 0.5),
    ),
    # ReviewKD's weight is not published for this pair: that of ReviewKD++
    ResNet50_MobileNetV2=pair(
        "MobileNetV2", "ResNet50", student_pre="maps", middle_stride=4,
        dkd_beta=8.0, review=6.0, review_pp=(6.0, 2.0), kd_pp=(3.0, 0.5), dkd_pp=(0.5, 8.0, 1.0),
    ),
    resnet32x4_ShuffleV1=pair(
        "ShuffleV1", "resnet32x4", middle_stride=4,
        dkd_beta=8.0, review=5.0, review_pp=(7.0, 1.0), kd_pp=(2.5, 1.5), dkd_pp=(0.5, 8.0, 4.0),
    ),
    resnet32x4_ShuffleV2=pair(
        "ShuffleV2", "resnet32x4", middle_stride=4,
        dkd_beta=8.0, review=8.0, review_pp=(8.0, 1.5), kd_pp=(4.0, 0.5), dkd_pp=(0.5, 6.0, 0.5),
    ),
)
# fmt: on
