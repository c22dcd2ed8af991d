"""The methods that tools/compare_methods.py knows for classifiers (``--methods-file``): what each changes in a config.

As in configs/common/methods.py, with the taps, which differ from method to method here. Every term has the weight 1.
"""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.distillation import LogitDistillation, MoKD, NoDistillation, ProjectorMatching, VkD

from .classification import alone, mokd, mokd_three_objectives, with_logits
from .objectives import fixed as weighted

fixed, amortized = weighted(1), mokd.balancer
on_logits = {"model.taps": dict(logits="logits")}
on_both = {"model.taps": dict(pooled="pooled", logits="logits")}
# the comparison knows the distillation losses as "distill": here those of the features
three = {
    "distill": mokd_three_objectives.objectives.kd,
    "kl": mokd_three_objectives.objectives.kl,
    "task": mokd_three_objectives.objectives.cls,
}

kd, vkd = L(LogitDistillation)(), with_logits(L(VkD)(task="classification"))
subspaces = with_logits(L(MoKD)(task="classification"))

methods: Any = dict(
    none=dict(label="student alone", method=L(NoDistillation)(), balancer=alone.balancer),
    kd=dict(label="KD", method=kd, balancer=fixed, settings=on_logits),
    kd_amortized=dict(label="KD, amortised", method=kd, balancer=amortized, settings=on_logits),
    vkd=dict(label="VkD", method=vkd, balancer=fixed, settings=on_both),
    vkd_amortized=dict(label="VkD, amortised", method=vkd, balancer=amortized, settings=on_both),
    mokd_fixed=dict(label="MoKD, fixed weights", method=subspaces, balancer=fixed, settings=on_both),
    mokd=dict(label="MoKD", method=subspaces, balancer=amortized, settings=on_both),
    # read from public summaries, without the clipping, which is the config's: docs/readings.md
    dto_kd=dict(
        label="DTO-KD (reading)",
        method=with_logits(L(ProjectorMatching)(projector="orthogonal", options=dict(affine=False))),
        balancer=amortized,
        settings=on_both,
    ),
    mokd_three_objectives=dict(
        label="MoKD, three objectives",
        method=subspaces,
        balancer=amortized,
        settings=dict(**on_both, objectives=three),
    ),
)
