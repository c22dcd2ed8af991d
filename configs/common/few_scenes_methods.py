"""The cells of the comparisons in docs/results.md: four losses, each at its best fixed weight on 160 scenes and
amortised, three controls of the amortised weights, and methods for detectors at their best of three weights.

Weights and learning rate were searched on replicates that are not reported, on validation images; NAME@W gives a weight
of another search. The two regressions have not been run: their weight is that of the other losses.
"""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.balancing import ClosedForm, MeanOf, Replay, SumNorm
from mokd_det.distillation import MoKD, NoDistillation, TokenMatching, VkD

from .detector_methods import methods as detectors
from .objectives import alone, fixed, mokd

similarity = L(MoKD)(loss="similarity")
standardized = L(MoKD)(loss="similarity", norm="standardize", student_norm="before")
regression = L(MoKD)(loss="regression", norm="standardize", student_norm="before")
# the default of detectors until 2026-11-29
layer_norm = L(MoKD)(loss="regression", norm="layer_norm", bias=True)

methods: Any = dict(none=dict(label="student alone", method=L(NoDistillation)(), balancer=alone["balancer"]))
for name, label, method, weight in (
    ("token_matching", "token matching", L(TokenMatching)(), 1 / 4),
    ("vkd", "VkD", L(VkD)(), 1 / 4),
    ("similarity", "MoKD similarity", similarity, 1 / 4),
    ("standardized", "MoKD similarity, standardised", standardized, 1 / 4),
    ("regression", "MoKD regression, standardised", regression, 1 / 4),
    ("layer_norm", "MoKD regression, layer norm", layer_norm, 1 / 4),
):
    for kind, said, balancer in (
        ("fixed", f"fixed {weight:g}", fixed(weight)),
        ("amortized", "amortised", mokd["balancer"]),
        ("closed_form", "closed form", L(ClosedForm)()),
    ):
        methods[f"{name}_{kind}"] = dict(label=f"{label}, {said}", method=method, balancer=balancer)
# what of amortised weights adapts: their mean, those of the next replicate, their direction at the length of the sum
controls: Any = (
    ("mean_weight", "mean weight of amortised", L(MeanOf)(run="{run:similarity_amortized}")),
    ("replayed", "another replicate's π", L(Replay)(run="{run:similarity_amortized:other}")),
    ("sum_norm", "amortised, norm of the sum", L(SumNorm)(balancer=mokd["balancer"])),
)
for name, said, balancer in controls:
    methods[f"similarity_{name}"] = dict(
        label=f"MoKD similarity, {said}", method=similarity, balancer=balancer
    )
# times the weights in detector_methods.py
for name, weight in dict(pkd=1 / 4, mgd=100, fgd=4, detr_distill=1, kd_detr=1 / 4, foundation=1).items():
    label = f"{detectors[name]['label']}, {weight:g} × published"
    methods[f"{name}_fixed"] = {**detectors[name], "label": label, "balancer": fixed(weight)}
methods["detr_distill_amortized"] = {
    **detectors["detr_distill"],
    "label": "DETRDistill, amortised",
    "balancer": mokd["balancer"],
}
