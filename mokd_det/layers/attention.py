"""Softmax attention with a learned bias and a constant mask, by whatever is fastest on the device.

On a CPU, PyTorch's fused attention takes no bias that learns, and what it does instead makes eight passes over the
logits. Here they are made, biased and masked in place and turned into weights once; the backward is written out.
Elsewhere, in half precision and in graphs, ``scaled_dot_product_attention`` serves.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dropout import draw_kept

__all__ = ["attend", "attend_packed"]


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q kᵀ / √d + mask) v.

    Args:
        query, key, value: (B, tokens, heads, d), any strides; keys and values have the same number of tokens.
        mask: additive and constant, broadcastable to (B, heads, queries, keys).
        dropout: probability with which an attention weight is dropped.

    Returns:
        (B, queries, heads, d), contiguous.
    """
    if _by_products(query):
        return _Attention.apply(query, key, value, mask, dropout)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return out.transpose(1, 2).contiguous()


def attend_packed(packed: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Self-attention of windows, softmax(q kᵀ / √d + bias + mask) v.

    Args:
        packed: queries, keys and values of all windows, (B·windows, tokens, 3, heads, d).
        bias: learned, the same for all windows, (heads, tokens, tokens).
        mask: constant, the same for all heads and images, (windows, tokens, tokens).

    Returns:
        (B·windows, tokens, heads, d), contiguous.
    """
    if _by_products(packed):
        return _PackedAttention.apply(packed, bias, mask)
    query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
    total = bias
    if mask is not None:
        total = mask[:, None] if bias is None else bias + mask[:, None]
        # not len(), whose result a trace would keep
        total = total.repeat(packed.shape[0] // mask.shape[0], 1, 1, 1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=total)
    return out.transpose(1, 2).contiguous()


def _by_products(x: Tensor) -> bool:
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _weights(
    query: Tensor, key: Tensor, heads: int, bias: Tensor | None, mask: Tensor | None, windows: int
) -> Tensor:
    """Attention weights of scaled queries, (B·heads, queries, keys).

    Args:
        query, key: (B·heads, tokens, d).
        heads: their number.
        bias: broadcastable to (B, heads, queries, keys).
        mask: broadcastable to (B / windows, windows, heads, queries, keys).
        windows: see there.
    """
    logits = torch.bmm(query, key.transpose(1, 2))
    shape = logits.shape[1:]
    if bias is not None:
        logits.view(-1, heads, *shape).add_(bias)
    if mask is not None:
        logits.view(-1, windows, heads, *shape).add_(mask)
    return torch.softmax(logits, -1)


def _logit_gradient(weights: Tensor, grad_weights: Tensor) -> Tensor:
    return torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)


def _by_head(x: Tensor, factor: float | None = None) -> Tensor:
    """(B, tokens, heads, d) -> (B·heads, tokens, d), contiguous, times a factor."""
    x = x.transpose(1, 2)
    x = x.contiguous() if factor is None else torch.mul(x, factor, out=x.new_empty(x.shape))
    return x.flatten(0, 1)


def _by_token(x: Tensor, heads: int) -> Tensor:
    """Inverse of :func:`_by_head`, as a view."""
    return x.view(-1, heads, *x.shape[1:]).transpose(1, 2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        heads, scale = query.shape[2], query.shape[3] ** -0.5
        query, key, value = _by_head(query, scale), _by_head(key), _by_head(value)
        weights = _weights(query, key, heads, mask, None, 1)
        kept, used, ctx.factor = None, weights, 1.0
        if dropout > 0.0:
            kept, ctx.factor = draw_kept(weights.shape, dropout, weights.device)
            used = weights * kept
        ctx.save_for_backward(query, key, value, weights, kept)
        ctx.heads, ctx.scale = heads, scale
        out = _by_token(torch.bmm(used, value), heads)
        return torch.mul(out, ctx.factor, out=out.new_empty(out.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept = ctx.saved_tensors
        grad = _by_head(grad, ctx.factor)
        grad_weights = torch.bmm(grad, value.transpose(1, 2))
        used = weights
        if kept is not None:
            used = weights * kept
            grad_weights.mul_(kept)
        grad_value = torch.bmm(used.transpose(1, 2), grad)
        grad_logits = _logit_gradient(weights, grad_weights)
        grad_query = torch.bmm(grad_logits, key).mul_(ctx.scale)
        grad_key = torch.bmm(grad_logits.transpose(1, 2), query)
        return *(_by_token(x, ctx.heads) for x in (grad_query, grad_key, grad_value)), None, None


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        batch, tokens, _, heads, width = packed.shape
        parts = packed.permute(2, 0, 3, 1, 4).contiguous().view(3, batch * heads, tokens, width)
        parts[0].mul_(width**-0.5)
        windows = 1 if mask is None else len(mask)
        weights = _weights(parts[0], parts[1], heads, bias, None if mask is None else mask[:, None], windows)
        ctx.save_for_backward(parts, weights)
        ctx.heads, ctx.has_bias = heads, bias is not None
        return _by_token(torch.bmm(weights, parts[2]), heads).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts, weights = ctx.saved_tensors
        _, tokens, _, heads, width = shape = (len(grad), grad.shape[1], 3, ctx.heads, grad.shape[3])
        grad = _by_head(grad)
        grad_parts = torch.empty_like(parts)
        torch.bmm(weights.transpose(1, 2), grad, out=grad_parts[2])
        grad_weights = torch.bmm(grad, parts[2].transpose(1, 2))
        grad_logits = _logit_gradient(weights, grad_weights)
        grad_bias = None
        if ctx.has_bias and ctx.needs_input_grad[1]:
            grad_bias = grad_logits.view(-1, heads, tokens, tokens).sum(0)
        torch.bmm(grad_logits, parts[1], out=grad_parts[0])
        grad_parts[0].mul_(width**-0.5)
        torch.bmm(grad_logits.transpose(1, 2), parts[0], out=grad_parts[1])
        grad_packed = grad_parts.view(3, -1, heads, tokens, width).permute(1, 3, 0, 2, 4)
        return grad_packed.contiguous().view(shape), grad_bias, None
