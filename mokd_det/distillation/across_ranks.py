"""Sums over the processes of data-parallel training: normalisers without a gradient, statistics with one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

__all__ = ["mean_over_ranks", "sum_over_ranks"]


@torch.no_grad()
def mean_over_ranks(count: Tensor | float, like: Tensor | None = None) -> Tensor:
    """A normaliser: the mean over the processes of a count, a scalar (or a number, of ``like``'s type and device).

    The mean over processes of (own sum / this) is the sum over all divided by the count of all, which is what one
    process with the whole batch computes.
    """
    if not isinstance(count, Tensor):
        assert like is not None
        # filled on the device: a copy from the host would wait for it
        count = like.new_full((), float(count))
    if comm.get_world_size() == 1:
        return count
    total = count.detach().clone()
    dist.all_reduce(total)
    return total / comm.get_world_size()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor of equal shape over the processes, for gradients as well: each process gets those of all."""
    return value if comm.get_world_size() == 1 else _Sum.apply(value)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    # torch types it as taking any number of gradients; this function has one output, so it gets one.
    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
