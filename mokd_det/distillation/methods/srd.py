"""Correlation of channels over the batch: simple and robust distillation (Miles & Mikolajczyk, AAAI 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import require_several
from mokd_det.distillation.taps import Specs, Taps
from mokd_det.distillation.vectors import vector_pair

__all__ = ["SRD"]


class SRD(Method):
    """``srd``: log(Σ_c |1 − ρ_c|⁴ + 1e-5), with ρ_c the correlation over the batch of channel c.

    The channels are those of a linear layer on the student's vector and of the teacher's vector. Published weight 1.

    Args:
        log: the published logarithm, which is negative for a good match: its term is signed, and balancers that take
            logarithms refuse it. False: the sum itself, of which they take the logarithm.
        eps: added to the variances; 0 as published is refused by today's BatchNorm, and is NaN on a constant channel.
    """

    tap_kinds = {"pooled": "vectors"}

    def __init__(self, log: bool = True, eps: float = 1e-12) -> None:
        super().__init__()
        self.log, self.eps = log, eps
        self.signed_terms = frozenset({"srd"}) if log else frozenset()

    def build_for(self, student: Specs, teacher: Specs) -> None:
        self.embed = nn.Linear(student["pooled"].channels[0], teacher["pooled"].channels[0])

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        z_s, z_t = vector_pair("pooled", student, teacher)
        require_several("SRD", z_s)
        correlation = (self._standard(self.embed(z_s)) * self._standard(z_t)).mean(0)
        total = (1 - correlation).abs().pow(4).sum()
        return {"srd": (total + 1e-5).log() if self.log else total}

    def _standard(self, vectors: Tensor) -> Tensor:
        variance, mean = torch.var_mean(vectors, 0, correction=0)
        return (vectors - mean) / (variance + self.eps).sqrt()
