"""Dropout whose masks are cheap to draw on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["draw_kept", "dropout"]

_LEVELS = 2**16


def draw_kept(shape: Sequence[int], probability: float, device: torch.device) -> tuple[Tensor, float]:
    """What a dropout keeps, and the factor that makes up for the rest.

    Four draws come from one random number of 64 bits, which takes a third of the time of a Bernoulli draw each; the
    probability is therefore rounded to a multiple of 2⁻¹⁶, and the factor is that of the rounded one.

    Args:
        shape: of the mask.
        probability: of dropping, in [0, 1).
        device: whose default generator is used.

    Returns:
        Bool mask, True where kept, and 1 / (1 - probability).
    """
    count = 1
    for length in shape:
        count *= length
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    numbers = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    kept = numbers.view(torch.int16)[:count].view(tuple(shape)) >= dropped - _LEVELS // 2
    return kept, _LEVELS / (_LEVELS - dropped)


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """:func:`torch.nn.functional.dropout`, on a CPU with masks of :func:`draw_kept`."""
    graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if not training or probability == 0.0 or x.device.type != "cpu" or graph:
        return F.dropout(x, probability, training)
    return _Dropout.apply(x, probability)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        kept, ctx.factor = draw_kept(x.shape, probability, x.device)
        ctx.save_for_backward(kept)
        return (x * kept).mul_(ctx.factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.factor), None
