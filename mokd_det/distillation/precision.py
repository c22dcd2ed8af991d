"""Full precision inside mixed-precision training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

__all__ = ["autocast_off", "full_precision", "tf32_off"]


def autocast_off(device: torch.device) -> AbstractContextManager[None]:
    """Switch autocast off: in half precision projections lose their orthogonality, losses their digits."""
    return torch.autocast(device_type=device.type, enabled=False)


def full_precision(tensor: Tensor) -> Tensor:
    """float32 for half-precision tensors; float32 and float64 stay as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def tf32_off(device: torch.device) -> Iterator[None]:
    """Compute the float32 products inside in float32 on CUDA too, whatever the process chose: TF32 rounds to 1e-3."""
    if device.type != "cuda":
        yield
        return
    settings = torch.backends.cuda.matmul
    # torch 2.9 renamed the switch; the old name warns there.
    name, exact = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    chosen = getattr(settings, name)
    setattr(settings, name, exact)
    try:
        yield
    finally:
        setattr(settings, name, chosen)
