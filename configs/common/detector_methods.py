"""Further published methods for detectors, with the taps that they read and their published weights.

As configs/common/methods.py, for tools/compare_methods.py's ``--methods-file``; the names of the taps are a ViDT's.
"""

from detectron2.config import LazyCall as L

from mokd_det.balancing import FixedWeights
from mokd_det.distillation import FGD, KDDETR, MGD, PKD, DETRDistill

from .methods import methods as basic
from .objectives import mokd

plain_sum, amortized = L(FixedWeights)(weights=dict(distill=1.0, task=1.0)), mokd.balancer


def entry(label, method, taps, weights, balancer=plain_sum):
    """One method: its taps, by the names that the models offer, and the weight of each of its terms."""
    distill = {f"loss_distill_{term}": weight for term, weight in weights.items()}
    settings = {"model.taps": {tap: tap for tap in taps}, "objectives.distill": distill}
    return dict(label=label, method=method, balancer=balancer, settings=settings)


def per_kind(kinds, weights):
    """The same weights for the terms of several kinds."""
    return {f"{kind}_{term}": weight for kind in kinds for term, weight in weights.items()}


methods = dict(
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
)
