"""How many directions a set of rows really uses."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["effective_rank", "sample_rows"]


def sample_rows(rows: Tensor, weights: Tensor | None, count: int = 1024) -> tuple[Tensor, Tensor | None]:
    """About ``count`` evenly spaced rows of (R, C) as a detached copy, with their weights."""
    step = max(rows.shape[0] // count, 1)
    return rows.detach()[::step].clone(), None if weights is None else weights[::step].clone()


@torch.no_grad()
def effective_rank(rows: Tensor, weights: Tensor | None = None) -> float:
    """exp of the entropy of the centred rows' singular values, normalised to sum 1 (Roy & Vetterli, 2007).

    Between 1 (one direction) and C (all channels equally strong and uncorrelated); 0 for constant rows. An isometry P
    leaves it unchanged. Rows (R, C) of weight 0 (R,) are left out.
    """
    rows = rows.double()
    if weights is not None:
        rows = rows[weights > 0]
    if len(rows) < 2:
        return 0.0
    singular = torch.linalg.svdvals(rows - rows.mean(0))
    # The smallest ones are rounding errors of the centring.
    singular = singular[singular > singular[0] * 1e-7]
    if len(singular) == 0:
        return 0.0
    share = singular / singular.sum()
    return float(torch.exp(-(share * share.log()).sum()))
