"""The cells of the comparisons in docs/results.md: four losses, each at its best fixed weight and amortised, and
methods for detectors at their best of three weights.

Weights and learning rate were searched on a replicate that is not reported, on validation images.
"""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.balancing import ClosedForm, FixedWeights
from mokd_det.distillation import MoKD, NoDistillation, TokenMatching, VkD

from .detector_methods import methods as detectors
from .objectives import alone, mokd


def _fixed(weight: float) -> Any:
    return L(FixedWeights)(weights=dict(distill=float(weight), task=1.0))


similarity = L(MoKD)(loss="similarity")
standardized = L(MoKD)(loss="similarity", norm="standardize", student_norm="before")

methods: Any = dict(none=dict(label="student alone", method=L(NoDistillation)(), balancer=alone["balancer"]))
for name, label, method, weight in (
    ("token_matching", "token matching", L(TokenMatching)(), 1 / 4),
    ("vkd", "VkD", L(VkD)(), 4),
    ("similarity", "MoKD similarity", similarity, 4),
    ("standardized", "MoKD similarity, standardised", standardized, 4),
):
    for kind, said, balancer in (
        ("fixed", f"fixed {weight:g}", _fixed(weight)),
        ("amortized", "amortised", mokd["balancer"]),
        ("closed_form", "closed form", L(ClosedForm)()),
    ):
        methods[f"{name}_{kind}"] = dict(label=f"{label}, {said}", method=method, balancer=balancer)
# times the weights in detector_methods.py
for name, weight in dict(pkd=1 / 4, mgd=100, fgd=4, detr_distill=1, kd_detr=1 / 4, foundation=1).items():
    label = f"{detectors[name]['label']}, {weight:g} × published"
    methods[f"{name}_fixed"] = {**detectors[name], "label": label, "balancer": _fixed(weight)}
methods["detr_distill_amortized"] = {
    **detectors["detr_distill"],
    "label": "DETRDistill, amortised",
    "balancer": mokd["balancer"],
}
