"""Sine position encoding of a padded feature map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["masked_sine_encoding"]


def masked_sine_encoding(padding_mask: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """Two-dimensional sine encoding whose coordinates run from 0 to 2π over the unpadded part of each image.

    Always computed in float32: coordinates are counts, and ViDT's published weights were trained with that rounding.

    Args:
        padding_mask: (B, H, W) bool, True on padding.
        channels: output channels, a multiple of 4; the first half encodes y, the second x.
        temperature: largest wavelength over 2π.

    Returns:
        (B, H, W, channels), float32.
    """
    if channels % 4:
        raise ValueError(f"the sine encoding needs a channel count that is a multiple of 4, not {channels}")
    half = channels // 2
    valid = (~padding_mask).to(torch.float32)
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    # neighbouring sine and cosine channels share a frequency
    index = torch.arange(half, dtype=torch.float32, device=padding_mask.device)
    period = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
    parts = []
    for coordinate in (y, x):
        angle = coordinate[..., None] / period
        parts.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2))
    return torch.cat(parts, dim=-1)
