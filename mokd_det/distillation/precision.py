"""Full precision inside mixed-precision training."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

__all__ = ["autocast_off", "full_precision"]


def autocast_off(device: torch.device) -> AbstractContextManager[None]:
    """Switch autocast off: in half precision projections lose their orthogonality, losses their digits."""
    return torch.autocast(device_type=device.type, enabled=False)


def full_precision(tensor: Tensor) -> Tensor:
    """float32 for half-precision tensors; float32 and float64 stay as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
