"""Further published methods for detectors, with the taps that they read and their published weights.

As configs/common/methods.py, for tools/compare_methods.py's ``--methods-file``; the names of the taps are a ViDT's.
"""

from detectron2.config import LazyCall as L

from mokd_det.balancing import FixedWeights
from mokd_det.distillation import FGD, MGD, PKD

from .methods import methods as basic
from .objectives import mokd

plain_sum, amortized = L(FixedWeights)(weights=dict(distill=1.0, task=1.0)), mokd.balancer


def entry(label, method, taps, weights, balancer=plain_sum):
    """One method: its taps, by the names that the models offer, and the weight of each of its terms."""
    distill = {f"loss_distill_{term}": weight for term, weight in weights.items()}
    settings = {"model.taps": {tap: tap for tap in taps}, "objectives.distill": distill}
    return dict(label=label, method=method, balancer=balancer, settings=settings)


methods = dict(
    **basic,
    pkd=entry("PKD", L(PKD)(), ["patch"], dict(patch=6.0)),
    mgd=entry("MGD", L(MGD)(), ["patch"], dict(patch=2e-5)),
    fgd=entry(
        "FGD", L(FGD)(), ["patch"], dict(foreground=1e-3, background=5e-4, attention=5e-4, relation=5e-6)
    ),
)
