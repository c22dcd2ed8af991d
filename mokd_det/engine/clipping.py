"""Clipping of gradients whose norms are known already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["clip_gradients"]


def clip_gradients(
    parameters: Sequence[nn.Parameter],
    norms: Sequence[Tensor] | None,
    max_norm: float,
    norm_type: float = 2.0,
    **options: Any,
) -> Tensor:
    """``torch.nn.utils.clip_grad_norm_``, to the bit, without reading the gradients once more for their norms.

    Args:
        parameters: whose gradients are clipped together.
        norms: the 2-norm of each of these gradients; None: not known.
        max_norm, norm_type, options: torch's.

    Returns:
        The norm of all together, before clipping.
    """
    # Without such a function (torch before 2.6), or for another norm, torch does the whole.
    clip = getattr(nn.utils, "clip_grads_with_norm_", None)
    if not norms or clip is None or norm_type != 2.0 or options:
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, **options)
    total = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    clip(parameters, max_norm, total)
    return total
