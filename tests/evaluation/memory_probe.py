"""Models of known memory, for a process that imports this file and little else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mokd_det.errors import DatasetError

__all__ = ["Allocation", "build_a_mistake", "build_allocation"]


class Allocation(nn.Module):
    """Touches as many megabytes as its argument says, for the time of its pass."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device

    def forward(self, megabytes: Tensor) -> Tensor:
        return torch.ones(int(megabytes) * 250_000, device=self.device).sum()


def build_allocation(megabytes: int) -> tuple[nn.Module, tuple[Tensor], tuple[Tensor]]:
    """Takes three times as much itself, which is no part of the pass."""
    torch.ones(3 * megabytes * 250_000).sum()
    return Allocation(), (torch.tensor(1),), (torch.tensor(megabytes),)


def build_a_mistake() -> tuple[nn.Module, tuple[Tensor], tuple[Tensor]]:
    """Of the user, found in the process."""
    raise DatasetError("no such file")
