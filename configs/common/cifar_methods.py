"""Every distillation method for classifiers with its published weights; a config chooses one by ``choice.method``.

What differs between pairs of networks is read from the config's ``pair``.
"""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.distillation import (
    CRD,
    DKD,
    NKD,
    OFD,
    PKT,
    RKD,
    SRD,
    USKD,
    Combined,
    FitNet,
    LogitDistillation,
    MoKD,
    NoDistillation,
    NormDirection,
    ReviewKD,
    VkD,
)

from .classification import mokd, plain_sum
from .classification import with_logits as beside_logits

# The recipes are SGD's, which feels the length of a step: weights that add up to 2, as those of the plain sum do.
amortized = {**mokd.balancer, "total": 2.0}

# the student's stages after the ReLU, the teacher's before it
review_taps = dict(maps=dict(student="maps", teacher="pre"), pooled="pooled")


def entry(
    label: str,
    method: Any,
    taps: dict[str, Any] | list[str],
    distill: dict[str, Any],
    *,
    task: float = 1.0,
    negatives: int | str = 0,
    balancer: Any = None,
    needs_teacher: bool = True,
) -> dict[str, Any]:
    """One method.

    Args:
        label: for people.
        method: the config of the ``Method`` class.
        taps: what it reads, from both models.
        distill: weight of each of its terms.
        task: weight of the cross-entropy.
        negatives: images of other classes that come with each image.
        balancer: of the two objectives; None: their plain sum, as published.
        needs_teacher: whether the teacher's file is read.
    """
    objectives = dict(
        distill={f"loss_distill_{term}": weight for term, weight in distill.items()},
        task=dict(loss_cls=task),
    )
    return dict(
        label=label,
        method=method,
        taps=taps if isinstance(taps, dict) else {name: name for name in taps},
        objectives=objectives if distill else dict(task=objectives["task"]),
        balancer=balancer or plain_sum.balancer,
        negatives=negatives,
        teacher_checkpoint="${pair.teacher_checkpoint}" if needs_teacher else "",
    )


def with_logits(method: Any) -> Any:
    """A method on pooled features beside KL on the logits, at the temperature of the CIFAR literature."""
    return beside_logits(method, temperature=4.0)


def with_norm_direction(method: Any, taps: list[str]) -> Any:
    """A method beside ND on the embedding: its "++"."""
    return L(Combined)(
        parts=dict(kd=method, nd=L(NormDirection)(num_classes="${pair.num_classes}")),
        taps=dict(kd=taps, nd=["pooled"]),
    )


both = ["pooled", "logits"]
subspaces = with_logits(L(MoKD)(task="classification"))

methods: Any = dict(
    none=entry("student alone", L(NoDistillation)(), [], {}, needs_teacher=False),
    # on logits
    kd=entry("KD", L(LogitDistillation)(temperature=4.0), ["logits"], dict(kl=0.9), task=0.1),
    dkd=entry(
        "DKD",
        L(DKD)(temperature=4.0, warmup_epochs="${warmup_epochs.value}"),
        ["logits"],
        dict(tckd=1.0, nckd="${pair.dkd_beta}"),
    ),
    nkd=entry("NKD", L(NKD)(temperature=3.0), ["logits"], dict(target=1.0, nontarget=3.5)),
    uskd=entry(
        "USKD",
        L(USKD)(),
        dict(logits="logits", middle=dict(path="maps", strides=["${pair.middle_stride}"])),
        dict(target=0.1, nontarget=0.1, weak=0.1),
        needs_teacher=False,
    ),
    # on maps
    fitnet=entry("FitNet", L(FitNet)(level=2), ["maps"], dict(hint=100.0)),
    ofd=entry("OFD", L(OFD)(), dict(pre=dict(student="${pair.student_pre}", teacher="pre")), dict(ofd=1e-3)),
    review_kd=entry(
        "ReviewKD",
        L(ReviewKD)(warmup_epochs="${warmup_epochs.value}"),
        review_taps,
        dict(review="${pair.review}"),
    ),
    # on pooled features
    rkd=entry("RKD", L(RKD)(), ["pooled"], dict(distance=25.0, angle=50.0)),
    pkt=entry("PKT", L(PKT)(), ["pooled"], dict(pkt=30000.0)),
    crd=entry(
        "CRD",
        L(CRD)(num_samples="${pair.train_images}"),
        ["pooled"],
        dict(crd=0.8),
        negatives="${pair.negatives}",
    ),
    srd=entry("SRD", with_logits(L(SRD)()), both, dict(kd_srd=1.0, kl_kl=1.0)),
    vkd=entry("VkD", with_logits(L(VkD)(task="classification")), both, dict(kd_pooled=1.0, kl_kl=1.0)),
    # with class centres
    kd_pp=entry(
        "KD++",
        with_norm_direction(L(LogitDistillation)(temperature=4.0), ["logits"]),
        ["logits", "pooled"],
        dict(kd_kl="${pair.kd_pp.kd}", nd_nd="${pair.kd_pp.nd}"),
    ),
    dkd_pp=entry(
        "DKD++",
        with_norm_direction(L(DKD)(temperature=4.0, warmup_epochs="${warmup_epochs.value}"), ["logits"]),
        ["logits", "pooled"],
        dict(kd_tckd="${pair.dkd_pp.alpha}", kd_nckd="${pair.dkd_pp.beta}", nd_nd="${pair.dkd_pp.nd}"),
    ),
    review_kd_pp=entry(
        "ReviewKD++",
        with_norm_direction(L(ReviewKD)(warmup_epochs="${warmup_epochs.value}"), ["maps", "pooled"]),
        review_taps,
        dict(kd_review="${pair.review_pp.kd}", nd_nd="${pair.review_pp.nd}"),
    ),
    # MoKD: subspaces and logits against the task
    mokd=entry("MoKD", subspaces, both, dict(kd_pooled=1.0, kl_kl=1.0), balancer=amortized),
    mokd_fixed=entry("MoKD, fixed weights", subspaces, both, dict(kd_pooled=1.0, kl_kl=1.0)),
)
