"""Which losses belong to which objective, and how the objectives are balanced."""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.balancing import Amortized, FixedWeights

distillation, task = ["loss_distill_*"], ["loss_ce*", "loss_bbox*", "loss_giou*"]
amortized = L(Amortized)(pi_optimizer="adamw", lr=0.025, weight_decay=0.01, update_every=1)

# a model that is trained alone has one objective, and its weight is 1
alone: Any = dict(objectives=dict(task=task), balancer=L(FixedWeights)())


def fixed(distill: float) -> Any:
    """A plain sum with a constant weight for the distillation."""
    return L(FixedWeights)(weights=dict(distill=float(distill), task=1.0))


# MoKD: two objectives, their weights learned beside the model (amortised, updated every iteration)
mokd: Any = dict(objectives=dict(distill=distillation, task=task), balancer=amortized)

# token matching and VkD as published: the plain sum with distillation's coefficient 4
published: Any = dict(objectives=dict(distill=distillation, task=task), balancer=fixed(4))

# MoKD for Hugging Face's detectors: classes (focal, varifocal, matchability-aware), boxes and their distributions
mokd_transformers: Any = dict(
    objectives=dict(
        distill=distillation,
        task=[f"loss_{part}*" for part in ("ce", "vfl", "mal", "bbox", "giou", "fgl", "ddf")],
    ),
    balancer=amortized,
)

# MoKD for the convolutional detectors of Detectron2 and torchvision: all their losses are the task
mokd_convolutional: Any = dict(
    objectives=dict(
        distill=distillation,
        task=["loss_cls*", "loss_classif*", "loss_box_reg*", "loss_bbox*", "loss_rpn_*", "loss_objectness"],
    ),
    balancer=amortized,
)
