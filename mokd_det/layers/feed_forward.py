"""The feed-forward layer of a transformer block; on a CPU by some rows at a time, whose hidden layer stays in cache."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .plain_linear import is_plain_linear

__all__ = ["feed_forward"]

# Enough rows for matrix products at full speed, few enough for a core's cache.
_ROWS = 1024


def feed_forward(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """``second(gelu(first(x)))`` with exact GELU, (..., C) -> (..., C_out); both layers have a bias."""
    if (
        x.device.type != "cpu"
        or x.dtype not in (torch.float32, torch.float64)
        or torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()
        or torch.compiler.is_compiling()
        or not (is_plain_linear(first) and is_plain_linear(second))
    ):
        return second(F.gelu(first(x)))
    return _FeedForward.apply(x, first.weight, first.bias, second.weight, second.bias)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        count = len(rows)
        kept = count if any(ctx.needs_input_grad) else min(count, _ROWS)
        hidden = rows.new_empty(kept, len(weight1))
        active = torch.empty_like(hidden)
        out = rows.new_empty(count, len(weight2))
        for start in range(0, count, _ROWS):
            part = slice(start, start + _ROWS)
            length = min(_ROWS, count - start)
            place = slice(start, start + length) if kept == count else slice(0, length)
            torch.addmm(bias1, rows[part], weight1.t(), out=hidden[place])
            torch.ops.aten.gelu.out(hidden[place], out=active[place])
            torch.addmm(bias2, active[place], weight2.t(), out=out[part])
        ctx.save_for_backward(rows, weight1, weight2, hidden, active)
        return out.view(*x.shape[:-1], len(weight2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        rows, weight1, weight2, hidden, active = ctx.saved_tensors
        grad_out = grad.reshape(-1, grad.shape[-1])
        count = len(rows)
        grad_rows = torch.empty_like(rows)
        grad_weight1, grad_weight2 = torch.zeros_like(weight1), torch.zeros_like(weight2)
        grad_bias1 = weight1.new_zeros(len(weight1))
        buffers = hidden.new_empty(2, min(count, _ROWS), hidden.shape[1])
        for start in range(0, count, _ROWS):
            part = slice(start, start + _ROWS)
            above = grad_out[part]
            grad_active, grad_hidden = buffers[:, : len(above)]
            torch.addmm(grad_weight2, above.t(), active[part], out=grad_weight2)
            torch.mm(above, weight2, out=grad_active)
            torch.ops.aten.gelu_backward.grad_input(grad_active, hidden[part], grad_input=grad_hidden)
            torch.addmm(grad_weight1, grad_hidden.t(), rows[part], out=grad_weight1)
            grad_bias1.add_(grad_hidden.sum(0))
            torch.mm(grad_hidden, weight1, out=grad_rows[part])
        grad_x = grad_rows.view(*grad.shape[:-1], rows.shape[1])
        return grad_x, grad_weight1, grad_bias1, grad_weight2, grad_out.sum(0)
