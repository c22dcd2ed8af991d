"""The methods with what a search found for each on the validation images; docs/results.md has all its trials.

Learning rates 2e-3 and 4e-3 each: for the fixed weights 1/16, 1/4, 1, 4 and 16 (ten trials); for MoKD three forms of
its loss, for the student alone three weight decays (six). The best of a method is what stands here. The crossings of
projection and balancer got no search of their own.
"""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.distillation import MoKD, NoDistillation, TokenMatching, VkD

from .objectives import alone, mokd
from .objectives import fixed as weighted

fixed, amortized = weighted(1 / 16), mokd.balancer
slow, fast = {"optimizer.lr": 2e-3}, {"optimizer.lr": 4e-3}

methods: Any = dict(
    none=dict(label="student alone", method=L(NoDistillation)(), balancer=alone.balancer, settings=slow),
    token_matching=dict(label="token matching", method=L(TokenMatching)(), balancer=fixed, settings=slow),
    vkd=dict(label="VkD", method=L(VkD)(), balancer=fixed, settings=slow),
    mokd=dict(label="MoKD", method=L(MoKD)(), balancer=amortized, settings=fast),
    # crossed: the projection of one with the balancer of the other
    vkd_amortized=dict(label="VkD, amortised", method=L(VkD)(), balancer=amortized, settings=slow),
    mokd_fixed=dict(label="MoKD, fixed weights", method=L(MoKD)(), balancer=fixed, settings=fast),
    # MoKD's other readings: regression of a layer-normalised target with a bias, with VkD's normalisation, and without
    # the higher dimension
    mokd_regression=dict(
        label="MoKD, regression",
        method=L(MoKD)(loss="regression", bias=True),
        balancer=amortized,
        settings=slow,
    ),
    mokd_standardized=dict(
        label="MoKD, standardised",
        method=L(MoKD)(loss="regression", norm="standardize", student_norm="after", bias=True),
        balancer=amortized,
        settings=fast,
    ),
    mokd_low=dict(
        label="MoKD, regression, n = 64",
        method=L(MoKD)(high_dimensional=False, loss="regression", bias=True),
        balancer=amortized,
        settings=slow,
    ),
)
