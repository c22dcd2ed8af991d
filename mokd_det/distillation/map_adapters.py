"""1 × 1 convolutions from the student's maps to the teacher's channels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["build_adapters"]


def build_adapters(channels: Mapping[str, tuple[int, int]]) -> dict[str, nn.Module]:
    """One per key, for (channels of the student, of the teacher); where they are equal the identity."""
    return {
        key: nn.Identity() if n_s == n_t else nn.Conv2d(n_s, n_t, 1) for key, (n_s, n_t) in channels.items()
    }
