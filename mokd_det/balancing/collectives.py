"""Averages over the data-parallel processes; with one process they cost nothing."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

__all__ = ["all_reduce_max", "all_reduce_mean", "all_reduce_sum", "world_size"]


def world_size() -> int:
    """Number of processes of the default group; 1 when nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over the processes, in place; every process gets the same bits."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Mean over the processes, in place (gloo has no mean of its own)."""
    size = world_size()
    return all_reduce_sum(tensor).div_(size) if size > 1 else tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Largest value over the processes, element by element, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor
