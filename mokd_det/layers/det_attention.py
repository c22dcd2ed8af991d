"""Attention of DET tokens to each other and, where asked for, to patch tokens (ViDT, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["attend_det_tokens", "det_attention_weights"]


def attend_det_tokens(
    qkv: nn.Linear, num_heads: int, det: Tensor, patches: Tensor | None, padding_mask: Tensor | None
) -> Tensor:
    """DET attention before the output projection, (B, N, C) -> (B, N, C).

    Args:
        qkv: C -> 3·C, of DET and patch tokens alike.
        num_heads: attention heads.
        det: normalised DET tokens with their position added (it enters q, k and v).
        patches: (B, H, W, C) normalised patch tokens with their position added, to be attended as well; None:
            DET tokens see each other only.
        padding_mask: (B, H, W) bool, True on image padding; such keys get -100.
    """
    query, key, value = (x.transpose(1, 2) for x in _project(qkv, num_heads, det, patches))
    mask = None
    if patches is not None and padding_mask is not None:
        padded = F.pad(padding_mask.flatten(1), (0, det.shape[1]))  # no DET token is padding
        mask = torch.zeros_like(padded, dtype=query.dtype).masked_fill(padded, -100.0)[:, None, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def det_attention_weights(
    qkv: nn.Linear, num_heads: int, det: Tensor, patches: Tensor, padding_mask: Tensor | None
) -> Tensor:
    """The weights with which :func:`attend_det_tokens` averages, for a look at them: (B, heads, N, H·W + N).

    Each row, of one DET token, adds up to 1 over the cells (row by row) and the DET tokens. A padded cell, whose share
    the model makes about e⁻¹⁰⁰, has exactly 0.
    """
    query, key = (x.transpose(1, 2) for x in _project(qkv, num_heads, det, patches)[:2])
    logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if padding_mask is not None:
        padded = padding_mask.flatten(1)[:, None, None]
        logits[..., : padded.shape[-1]].masked_fill_(padded, float("-inf"))
    return logits.softmax(-1)


def _split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """(B, N, parts·C) -> ``parts`` tensors (B, N, heads, C/heads)."""
    batch, tokens, _ = x.shape  # not unflatten, which would hold a trace to its sizes
    return x.view(batch, tokens, parts, num_heads, -1).unbind(2)


def _project(
    qkv: nn.Linear, num_heads: int, det: Tensor, patches: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the DET tokens; keys and values of the patches, if any, and the DET tokens: (B, ·, heads, C/heads)."""
    query, key, value = _split_heads(qkv(det), 3, num_heads)
    if patches is not None:
        dim = det.shape[-1]
        flat = F.linear(patches.flatten(1, 2), qkv.weight[dim:], qkv.bias[dim:])  # no queries needed
        patch_key, patch_value = _split_heads(flat, 2, num_heads)
        key, value = torch.cat((patch_key, key), 1), torch.cat((patch_value, value), 1)
    return query, key, value
