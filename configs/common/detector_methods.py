"""Further published methods for detectors, with the taps that they read and their published weights.

As configs/common/methods.py, for tools/compare_methods.py's ``--methods-file``; the names of the taps are a ViDT's.
Where they have to be spelled for a model (a dense detector's pyramid, one stride), they are the config's own.
Sources of the weights: docs/methods.md.
"""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.distillation import FGD, KDDETR, LD, MGD, PKD, CrossKD, DETRDistill, FoundationFeatures

from .methods import methods as basic
from .objectives import fixed

plain_sum = fixed(1)


def entry(
    label: str, method: Any, taps: list[str] | None, weights: dict[str, float], balancer: Any = plain_sum
) -> dict[str, Any]:
    """One method: its taps, by the names that the models offer (None: the config's), and the weight of each term."""
    settings: dict[str, Any] = {
        "objectives.distill": {f"loss_distill_{term}": weight for term, weight in weights.items()}
    }
    if taps is not None:
        settings["model.taps"] = {tap: tap for tap in taps}
    return dict(label=label, method=method, balancer=balancer, settings=settings)


def per_kind(kinds: list[str], weights: dict[str, float]) -> dict[str, float]:
    """The same weights for the terms of several kinds."""
    return {f"{kind}_{term}": weight for kind in kinds for term, weight in weights.items()}


methods: Any = dict(
    **basic,
    pkd=entry("PKD", L(PKD)(), ["patch"], dict(patch=6.0)),
    mgd=entry("MGD", L(MGD)(), ["patch"], dict(patch=2e-5)),
    fgd=entry(
        "FGD", L(FGD)(), ["patch"], dict(foreground=1e-3, background=5e-4, attention=5e-4, relation=5e-6)
    ),
    detr_distill=entry(
        "DETRDistill",
        L(DETRDistill)(),
        ["patch", "head", "head_logits", "head_boxes"],
        {
            **per_kind(["logits", "prior"], {"class": 1.0, "bbox": 5.0, "giou": 2.0}),
            "features": 1.0,  # ours: the published one is not among the formulas that we have
        },
    ),
    kd_detr=entry(
        "KD-DETR",
        L(KDDETR)(),
        ["logits", "boxes"],
        per_kind(["general", "specific"], {"class": 1.0, "bbox": 5.0, "giou": 2.0}),
    ),
    # dense detectors with their pyramid as the tap "patch"; for boxes compared by GIoU no weight is published
    cross_kd=entry("CrossKD", L(CrossKD)(), None, {"class": 1.0, "box": 1.0}),
    ld=entry("LD", L(LD)(), ["corners", "logits"], dict(sides=0.25)),
    # configs whose teacher is a ViT (configs/examples/foundation_vidt_nano.py, configs/few_scenes/foundation.py)
    foundation=entry("foundation features", L(FoundationFeatures)(), None, dict(patch=5.0)),
)
