"""Probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import require_several
from mokd_det.distillation.taps import Taps
from mokd_det.distillation.vectors import vector_pair

__all__ = ["PKT", "neighbour_probabilities"]

_EPS = 1e-7


class PKT(Method):
    """``pkt``: mean over all pairs (i, j) of a batch of q_t log(q_t / q_s).

    q_ij is the cosine similarity of images i and j, shifted to [0, 1] and normalised over j. Published weight 30000.
    Dimensions may differ.
    """

    tap_kinds = {"pooled": "vectors"}

    def __init__(self) -> None:
        super().__init__()

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
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
