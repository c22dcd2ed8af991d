"""Relational knowledge distillation (Park et al., CVPR 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import require_several
from mokd_det.distillation.taps import Taps
from mokd_det.distillation.vectors import vector_pair

__all__ = ["RKD", "angles", "relative_distances"]


class RKD(Method):
    """How the images of a batch lie to each other: smooth L1 (β = 1) of student and teacher, mean over all entries.

    ``distance``: Euclidean distances of all pairs over their mean; ``angle``: cosines at each image between the
    directions to all pairs of others. Published weights 25 and 50. Dimensions may differ. ``angle`` takes B³ numbers
    per model.
    """

    tap_kinds = {"pooled": "vectors"}

    def __init__(self) -> None:
        super().__init__()

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        z_s, z_t = vector_pair("pooled", student, teacher)
        require_several("RKD", z_s)
        return {
            "distance": F.smooth_l1_loss(relative_distances(z_s), relative_distances(z_t)),
            "angle": F.smooth_l1_loss(angles(z_s), angles(z_t)),
        }


def relative_distances(vectors: Tensor) -> Tensor:
    """Euclidean distances of all pairs of (B, C), (B, B), over the mean of those off the diagonal."""
    norms = vectors.square().sum(1)
    squares = norms[:, None] + norms[None, :] - 2 * vectors @ vectors.T
    count = len(vectors)
    # The lower bound keeps the root's slope finite for images that coincide.
    distances = squares.clamp_min(1e-12).sqrt() * (
        1 - torch.eye(count, dtype=vectors.dtype, device=vectors.device)
    )
    return distances / (distances.sum() / (count * (count - 1)))


def angles(vectors: Tensor) -> Tensor:
    """cos of the angle at i between the directions to j and to k, for all triples of (B, C): (B, B, B)."""
    directions = F.normalize(vectors[None, :, :] - vectors[:, None, :], dim=2)
    return directions @ directions.transpose(1, 2)
