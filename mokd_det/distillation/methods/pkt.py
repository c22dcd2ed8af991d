"""Probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import require_kind, require_several
from mokd_det.distillation.taps import TapValue
from mokd_det.distillation.vectors import vector_pair
from mokd_det.layers.tap_point import TapSpec

__all__ = ["PKT", "neighbour_probabilities"]

_EPS = 1e-7


class PKT(Method):
    """``pkt``: mean over all pairs (i, j) of a batch of q_t log(q_t / q_s).

    q_ij is the cosine similarity of images i and j, shifted to [0, 1] and normalised over j. Published weight 30000.
    Dimensions may differ.
    """

    required_taps = ("pooled",)

    def __init__(self) -> None:
        super().__init__()

    def check(self, student: Mapping[str, TapSpec], teacher: Mapping[str, TapSpec]) -> None:
        require_kind("PKT", "pooled", "vectors", student, teacher)

    def compare_taps(
        self, student: Mapping[str, TapValue], teacher: Mapping[str, TapValue], context: MethodContext
    ) -> dict[str, Tensor]:
        """``pkt``."""
        z_s, z_t = vector_pair("pooled", student, teacher)
        require_several("PKT", z_s)
        q_s, q_t = neighbour_probabilities(z_s), neighbour_probabilities(z_t)
        divergence = (q_t * ((q_t + _EPS) / (q_s + _EPS)).log()).mean()
        # Rounding leaves the divergence of equal relations a little below 0; a negative loss has no logarithm.
        return {"pkt": divergence.clamp_min(0)}


def neighbour_probabilities(vectors: Tensor) -> Tensor:
    """(B, C) → (B, B), rows that sum to 1."""
    directions = vectors / (torch.linalg.vector_norm(vectors, dim=1, keepdim=True) + _EPS)
    similarities = (directions @ directions.T + 1) / 2
    return similarities / similarities.sum(1, keepdim=True)
