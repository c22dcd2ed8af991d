"""Sizes and places of feature levels as a tensor, without a wait for the device at each use."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["level_table"]

Shapes = tuple[tuple[int, int], ...]


def level_table(
    shapes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype = torch.int32
) -> Tensor:
    """(L, 3): height, width and first cell of every level, the levels' cells one after the other.

    Args:
        shapes: (H_l, W_l) of the levels.
        device: where the table is wanted. On CUDA it is kept for later calls, because a copy from the host waits until
            the device has done everything before it.
        dtype: of the table; the largest number is that of all cells.
    """
    sizes = tuple((int(height), int(width)) for height, width in shapes)
    make = _kept if device.type == "cuda" else _made
    return make(sizes, device, dtype)


def _made(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Tensor:
    rows, start = [], 0
    for height, width in shapes:
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=dtype, device=device)


@functools.lru_cache(maxsize=1024)
def _kept(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be kept for a later backward
        return _made(shapes, device, dtype)
