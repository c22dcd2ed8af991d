"""Reconfigured attention (RAM) of ViDT: windowed patch tokens and global DET tokens under one set of weights.

Three attentions share the qkv and output projections (ViDT, section 3.1): patches to patches in (shifted) windows,
DET to DET, and, where asked for, DET to all patches.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend_packed
from .det_attention import attend_det_tokens

__all__ = [
    "ReconfiguredAttention",
    "build_shift_mask",
    "merge_windows",
    "partition_windows",
    "relative_position_index",
    "shift_mask",
    "window_index",
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


class WindowIndex(NamedTuple):
    """Which cell of a batch of maps is which cell of a shifted window.

    Attributes:
        cells: (B·windows·size²,) int64, the map's cell in every cell of a window; 0 in those of the padding.
        padding: positions in ``cells`` that are padding.
        places: (B·H·W,) int64, the place of every cell of the map in ``cells``.
    """

    cells: Tensor
    padding: Tensor
    places: Tensor


@lru_cache(maxsize=64)
def window_index(
    batch: int, height: int, width: int, size: int, shift: int, device: torch.device
) -> WindowIndex:
    """The index of a batch of (height, width) maps, padded to whole windows at the right and bottom, then rolled."""
    with torch.inference_mode(False):  # see build_shift_mask
        cells = torch.arange(batch * height * width).view(batch, height, width, 1)
        cells = F.pad(cells, (0, 0, 0, -width % size, 0, -height % size), value=-1)
        cells = partition_windows(cells.roll((-shift, -shift), dims=(1, 2)), size).flatten()
        inside = cells >= 0
        places = torch.empty(batch * height * width, dtype=torch.int64)
        places[cells[inside]] = inside.nonzero().squeeze(1)
        padding = (~inside).nonzero().squeeze(1)
        return WindowIndex(*(x.to(device) for x in (cells.clamp(min=0), padding, places)))


class _ToWindows(torch.autograd.Function):
    """Cells (B·H·W, C) and what stands in padding (C,) -> (B·windows·size², C), in one copy."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, padding: Tensor, index: WindowIndex) -> Tensor:
        ctx.index = index
        windows = cells.index_select(0, index.cells)
        if len(index.padding):
            windows.index_copy_(0, index.padding, padding.expand(len(index.padding), -1).to(windows.dtype))
        return windows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index = ctx.index
        grad_padding = None
        if ctx.needs_input_grad[1]:
            grad_padding = grad.index_select(0, index.padding).sum(0)
        # Every cell has one place: no sums, as the derivative of an index_select would make them.
        return _FromWindows.apply(grad, index), grad_padding, None


class _FromWindows(torch.autograd.Function):
    """Inverse of :class:`_ToWindows`; what stands in padding is dropped."""

    @staticmethod
    def forward(ctx: Any, windows: Tensor, index: WindowIndex) -> Tensor:
        ctx.index = index
        return windows.index_select(0, index.places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _ToWindows.apply(grad, grad.new_zeros(grad.shape[1]), ctx.index), None


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
        """Relative position bias, (heads, window², window²)."""
        area = self.window_size**2
        bias = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        return bias.view(area, area, self.num_heads).permute(2, 0, 1)

    def attend_windows(self, patches: Tensor, shift: int) -> Tensor:
        """Window attention before the output projection, (B, H, W, C) -> (B, H, W, C).

        The map is zero-padded to whole windows and the padding takes part, as in the published model; image padding
        is not masked either.
        """
        # The sizes of a trace (for export, or to count FLOPs) are variables, nothing to keep an index for.
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return self._attend_rolled(patches, shift)
        batch, height, width, channels = patches.shape
        size = self.window_size
        index = window_index(batch, height, width, size, shift, patches.device)
        qkv = self.qkv(patches).flatten(0, 2)
        # Projected zeros are the projection's bias, so the padding need not be projected.
        windows = _ToWindows.apply(qkv, self.qkv.bias, index)
        mask = None
        if shift:
            full = height + -height % size, width + -width % size
            mask = shift_mask(*full, size, shift, qkv.device, qkv.dtype)
        out = attend_packed(
            windows.view(-1, size * size, 3, self.num_heads, channels // self.num_heads),
            self._window_bias().to(qkv.dtype),
            mask,
        )
        return _FromWindows.apply(out.view(-1, channels), index).view(batch, height, width, channels)

    def _attend_rolled(self, patches: Tensor, shift: int) -> Tensor:
        """:meth:`attend_windows` in operators that graphs of every size can hold."""
        _, height, width, channels = patches.shape
        size = self.window_size
        pad_h, pad_w = -height % size, -width % size
        full_h, full_w = height + pad_h, width + pad_w
        patches = F.pad(patches, (0, 0, 0, pad_w, 0, pad_h))
        mask = None
        if shift:
            patches = patches.roll((-shift, -shift), dims=(1, 2))
            mask = build_shift_mask(full_h, full_w, size, shift, patches.device, patches.dtype)
        qkv = self.qkv(partition_windows(patches, size))
        packed = qkv.view(-1, size * size, 3, self.num_heads, channels // self.num_heads)
        out = attend_packed(packed, self._window_bias().to(qkv.dtype), mask)
        out = merge_windows(out.flatten(2), size, full_h, full_w)
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
