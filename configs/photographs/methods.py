"""Methods with few labels (docs/results.md): losses on the labelled photographs, and on unlabelled ones beside them.

In NAME@W the weight W is that of the labelled photographs' distillation.
"""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.balancing import FixedWeights
from mokd_det.distillation import MoKD, NoDistillation, TokenMatching, VkD

from ..common.objectives import alone, mokd
from ..common.objectives import fixed as weighted
from .common import FOLDER

fixed = weighted(1)
similarity = L(MoKD)(loss="similarity")
unlabeled = {
    "data.unlabeled.images": f"{FOLDER}/images",
    "objectives": dict(mokd.objectives, unlabeled=["loss_unlabeled_*"]),
}
methods: Any = dict(
    none=dict(label="student alone", method=L(NoDistillation)(), balancer=alone.balancer),
    token_matching=dict(label="token matching, fixed", method=L(TokenMatching)(), balancer=fixed),
    vkd=dict(label="VkD, fixed", method=L(VkD)(), balancer=fixed),
    mokd_fixed=dict(label="MoKD, fixed", method=similarity, balancer=fixed),
    mokd=dict(label="MoKD, amortised", method=similarity, balancer=mokd.balancer),
    mokd_unlabeled=dict(
        label="MoKD and unlabelled, amortised",
        method=similarity,
        balancer=mokd.balancer,
        settings=unlabeled,
    ),
    mokd_unlabeled_fixed=dict(
        label="MoKD and unlabelled, fixed",
        method=similarity,
        balancer=L(FixedWeights)(weights=dict(distill=1.0, task=1.0, unlabeled=1.0)),
        settings=unlabeled,
    ),
)
