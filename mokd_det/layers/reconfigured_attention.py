"""Reconfigured attention (RAM) of ViDT: windowed patch tokens and global DET tokens under one set of weights.

Three attentions share the qkv and output projections (ViDT, section 3.1): patches to patches in (shifted) windows,
DET to DET, and, where asked for, DET to all patches.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .det_attention import attend_det_tokens

__all__ = [
    "ReconfiguredAttention",
    "attend_windows",
    "build_shift_mask",
    "merge_windows",
    "partition_windows",
    "relative_position_index",
    "shift_mask",
]


def partition_windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) with H, W multiples of ``size`` -> (B·H·W/size², size², C), windows row by row."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // size, size, width // size, size, channels)
    return x.transpose(2, 3).reshape(-1, size * size, channels)


def merge_windows(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """Inverse of :func:`partition_windows`: back to (B, height, width, C)."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // size, width // size, size, size, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def relative_position_index(size: int) -> Tensor:
    """Row of the bias table for every (query, key) pair of a window, (size², size²) int64 (Swin, Eq. 4)."""
    axis = torch.arange(size)
    y, x = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    dy = y[:, None] - y[None, :] + size - 1
    dx = x[:, None] - x[None, :] + size - 1
    return dy * (2 * size - 1) + dx


def build_shift_mask(
    height: int, width: int, size: int, shift: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Additive mask of shifted windows (windows, size², size²): -100 between cells that the roll brought together."""

    def bands(length: int) -> Tensor:
        index = torch.arange(length)
        return (index >= length - size).long() + (index >= length - shift).long()

    with torch.inference_mode(False):  # the cached tensor may be asked for by an evaluation, then by training
        regions = bands(height)[:, None] * 3 + bands(width)[None, :]
        regions = partition_windows(regions[None, :, :, None], size).squeeze(-1)
        different = regions[:, None, :] != regions[:, :, None]
        return torch.zeros(different.shape, dtype=dtype).masked_fill_(different, -100.0).to(device)


# A training run sees few padded sizes, and building a mask takes longer than using it.
shift_mask = lru_cache(maxsize=64)(build_shift_mask)


def attend_windows(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """softmax(q kᵀ / √d + bias) v of (B·windows, heads, tokens, d); ``bias`` broadcasts to the logits."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    # A CPU's fused attention takes no bias that learns, and what PyTorch does instead is slower than the products.
    logits = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    return (logits + bias).softmax(-1) @ value


class ReconfiguredAttention(nn.Module):
    """Attention over patch tokens (windows of ``window_size``² cells) and DET tokens (global), shared projections."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.window_size = num_heads, window_size
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # persistent, because the published checkpoints carry it
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def _window_bias(self) -> Tensor:
        """Relative position bias, (heads, window², window²)."""
        area = self.window_size**2
        bias = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        return bias.view(area, area, self.num_heads).permute(2, 0, 1)

    def attend_windows(self, patches: Tensor, shift: int) -> Tensor:
        """Window attention before the output projection, (B, H, W, C) -> (B, H, W, C).

        The map is zero-padded to whole windows and the padding takes part, as in the published model; image padding
        is not masked either.
        """
        _, height, width, channels = patches.shape
        size, heads = self.window_size, self.num_heads
        full_h, full_w = height + -height % size, width + -width % size
        # The sizes of a trace (for export, or to count FLOPs) are variables: what they decide is for every size.
        graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if graph or (full_h, full_w) != (height, width):
            patches = F.pad(patches, (0, 0, 0, full_w - width, 0, full_h - height))
        if shift:
            patches = patches.roll((-shift, -shift), dims=(1, 2))
        qkv = self.qkv(partition_windows(patches, size))
        query, key, value = (
            qkv.view(-1, size**2, 3, heads, channels // heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        bias = self._window_bias().to(qkv.dtype)
        if shift:
            make = build_shift_mask if graph else shift_mask
            mask = make(full_h, full_w, size, shift, qkv.device, qkv.dtype)
            # not len(), whose result a trace would keep
            bias = (bias + mask[:, None]).repeat(query.shape[0] // mask.shape[0], 1, 1, 1)
        out = attend_windows(query, key, value, bias).transpose(1, 2).flatten(2)
        out = merge_windows(out, size, full_h, full_w)
        if shift:
            out = out.roll((shift, shift), dims=(1, 2))
        return out[:, :height, :width]

    def attend_det(self, det: Tensor, patches: Tensor | None, padding_mask: Tensor | None) -> Tensor:
        """:func:`attend_det_tokens` with the projections that the patches use too."""
        return attend_det_tokens(self.qkv, self.num_heads, det, patches, padding_mask)

    def forward(
        self,
        patches: Tensor,
        det: Tensor,
        *,
        shift: int = 0,
        patch_pos: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend and project.

        Args:
            patches: (B, H, W, C), normalised.
            det: (B, N, C), normalised, position added.
            shift: roll of the windows in cells; 0: plain windows.
            patch_pos: (B, H, W, C) position encoding for the DET-to-patch attention; None: no such attention.
            padding_mask: (B, H, W) bool for the DET-to-patch attention.

        Returns:
            Updates of both kinds of token, same shapes as the inputs.
        """
        keys = None if patch_pos is None else patches + patch_pos.to(patches.dtype)
        update = self.proj(self.attend_windows(patches, shift))
        return update, self.proj(self.attend_det(det, keys, padding_mask))
