"""Token matching, the distillation of ViDT (Song et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.row_losses import mean_euclidean
from mokd_det.distillation.rows import RowPair

__all__ = ["TokenMatching"]


class TokenMatching(Method):
    """Distances of tokens, without projection or normalisation.

    With m the mean over rows of the Euclidean distance, and L + 1 token sets in the head's stack,

        tokens = sqrt( Σ_l m(patch_l) + m(neck) + (L + 1) · m(head) )

    (a stack of levels counts once per level). Published with coefficient 4, which is the balancer's here. At
    equality the square root has no derivative; the gradient is 0 there.

    Args:
        mask_padding: leave padded cells out; False: as published.
    """

    same_channels = True

    def compare(self, pairs: Mapping[str, list[RowPair]]) -> dict[str, Tensor]:
        """``tokens``: one term for all taps."""
        distances = [
            pair.num_levels * mean_euclidean(pair.student, pair.teacher, pair.weights)
            for tap in pairs.values()
            for pair in tap
        ]
        total = torch.stack(distances).sum()
        # sqrt never sees 0: its infinite slope times the inner gradient of 0 would be NaN.
        positive = total > 0
        root = torch.where(positive, total, torch.ones_like(total)).sqrt()
        return {"tokens": torch.where(positive, root, torch.zeros_like(root))}
