"""Reconfigured attention (RAM) of ViDT: windowed patch tokens and global DET tokens under one set of weights.

Three attentions share the qkv and output projections (ViDT, section 3.1): patches to patches in (shifted) windows,
DET to DET, and, where asked for, DET to all patches.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .det_attention import attend_det_tokens, split_heads

__all__ = [
    "ReconfiguredAttention",
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
    """Additive mask of shifted windows: -100 between cells that the roll brought together from opposite edges.

    Returns:
        (windows, size², size²) of 0 and -100.
    """

    def bands(length: int) -> Tensor:
        index = torch.arange(length)
        return (index >= length - size).long() + (index >= length - shift).long()

    with torch.inference_mode(
        False
    ):  # the cached tensor may first be asked for by an evaluation, then by training
        regions = bands(height)[:, None] * 3 + bands(width)[None, :]
        regions = partition_windows(regions[None, :, :, None], size).squeeze(-1)
        different = regions[:, None, :] != regions[:, :, None]
        return torch.zeros(different.shape, dtype=dtype).masked_fill_(different, -100.0).to(device)


# A training run sees few padded sizes, and building a mask takes longer than using it.
shift_mask = lru_cache(maxsize=64)(build_shift_mask)


class ReconfiguredAttention(nn.Module):
    """Attention over patch tokens (windows) and DET tokens (global) with shared projections.

    Args:
        dim: channels C.
        num_heads: attention heads.
        window_size: side of a window in cells.
    """

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
        """Relative position bias, (1, heads, window², window²)."""
        area = self.window_size**2
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return bias.view(1, area, area, self.num_heads).permute(0, 3, 1, 2)

    def attend_windows(self, patches: Tensor, shift: int) -> Tensor:
        """Window attention before the output projection, (B, H, W, C) -> (B, H, W, C).

        The map is zero-padded to whole windows and the padding takes part, as in the published model; image padding
        is not masked either.
        """
        batch, height, width, _ = patches.shape
        size = self.window_size
        pad_h, pad_w = -height % size, -width % size
        # A trace (for export, or to count FLOPs) is to hold for every size, so it must hold the padding.
        if torch.jit.is_tracing() or pad_h or pad_w:
            patches = F.pad(patches, (0, 0, 0, pad_w, 0, pad_h))
        if shift:
            patches = patches.roll((-shift, -shift), dims=(1, 2))
        full_h, full_w = height + pad_h, width + pad_w
        query, key, value = split_heads(self.qkv(partition_windows(patches, size)), 3, self.num_heads)
        bias = self._window_bias().to(query.dtype)
        if shift:
            # The sizes of a trace are variables, nothing to cache a mask for.
            mask_of = build_shift_mask if torch.jit.is_tracing() else shift_mask
            mask = mask_of(full_h, full_w, size, shift, query.device, query.dtype)
            bias = (bias + mask[:, None]).repeat(batch, 1, 1, 1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out = merge_windows(out.transpose(1, 2).flatten(2), size, full_h, full_w)
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
        return self.proj(self.attend_windows(patches, shift)), self.proj(
            self.attend_det(det, keys, padding_mask)
        )
