"""The methods that tools/compare_methods.py knows: what each changes in a config, method and balancer only.

The config's objectives stay; the one called ``distill`` is left out where a method needs no teacher. A fixed
weight of ``task`` is that of every objective but ``distill``.
"""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.distillation import MoKD, NoDistillation, ProjectorMatching, TokenMatching, VkD

from .objectives import alone, mokd, published

fixed, amortized = published.balancer, mokd.balancer

methods: Any = dict(
    none=dict(label="student alone", method=L(NoDistillation)(), balancer=alone.balancer),
    token_matching=dict(label="token matching", method=L(TokenMatching)(), balancer=fixed),
    token_matching_amortized=dict(
        label="token matching, amortised", method=L(TokenMatching)(), balancer=amortized
    ),
    vkd=dict(label="VkD", method=L(VkD)(), balancer=fixed),
    vkd_amortized=dict(label="VkD, amortised", method=L(VkD)(), balancer=amortized),
    mokd_fixed=dict(label="MoKD, fixed weights", method=L(MoKD)(), balancer=fixed),
    mokd=dict(label="MoKD", method=L(MoKD)(), balancer=amortized),
    # read from public summaries, without the clipping, which is the config's: docs/readings.md
    dto_kd=dict(
        label="DTO-KD (reading)",
        method=L(ProjectorMatching)(projector="orthogonal", norm="standardize", student_norm="after"),
        balancer=amortized,
    ),
)
