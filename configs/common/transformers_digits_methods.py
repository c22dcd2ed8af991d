"""The cells of the comparison of D-FINE with D-FINE in docs/transformers.md. No weight was searched."""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.distillation import LD, MoKD, NoDistillation

from .objectives import alone, amortized, fixed

sides = {name: name for name in ("corners", "logits")}

methods: Any = dict(
    none=dict(label="student alone", method=L(NoDistillation)(), balancer=alone["balancer"]),
    similarity=dict(label="MoKD similarity, fixed 4", method=L(MoKD)(loss="similarity"), balancer=fixed(4)),
    mokd=dict(label="MoKD similarity, amortised", method=L(MoKD)(loss="similarity"), balancer=amortized),
    # as published for dense heads: T = 10, weight 0.25
    ld=dict(label="LD, fixed 0.25", method=L(LD)(), balancer=fixed(0.25), settings={"model.taps": sides}),
)
