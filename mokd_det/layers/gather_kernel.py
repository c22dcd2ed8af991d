"""Deformable attention by plain indexing, for runtimes that lack ``GridSample`` or fuse it wrongly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .kernel_registry import register_kernel

__all__ = ["gather_kernel"]


@register_kernel("gather")
def gather_kernel(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Bilinear sampling as a weighted sum over the four cells around each point, all levels in one read.

    Exported, it is floor, comparisons, one Gather and one MatMul. Takes four times the memory of ``"grid_sample"``
    for what it reads.
    """
    heads, cells = value.shape[2], value.shape[1]
    maps = value.transpose(1, 2).flatten(0, 1)  # (B·M, S, D)
    points = locations.transpose(1, 2).flatten(0, 1)  # (B·M, Q, L, P, 2)
    weights = weights.transpose(1, 2).flatten(0, 1)  # (B·M, Q, L, P)
    indices, shares = [], []
    start = 0
    for level, (height, width) in enumerate(shapes):
        x = points[:, :, level, :, 0] * width - 0.5
        y = points[:, :, level, :, 1] * height - 0.5
        left, top = x.floor(), y.floor()
        for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
            for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                # Selected before the conversion: far or undefined points have no index.
                index = torch.where(inside, row * width + column, torch.zeros_like(row)).long()
                indices.append(index + start)
                shares.append(share_x * share_y * inside * weights[:, :, level])
        start = start + height * width
    share = torch.stack(shares, -1).flatten(2)  # (B·M, Q, P·4L)
    index = torch.stack(indices, -1).flatten(2)
    first = torch.arange(maps.shape[0], device=value.device) * cells
    rows = (index + first[:, None, None]).flatten()
    read = maps.flatten(0, 1).index_select(0, rows).view(*share.shape, maps.shape[-1])
    output = (share.unsqueeze(2) @ read).squeeze(2)  # (B·M, Q, D)
    return output.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
