"""One look per step at every named loss: for the writers, and to stop before a bad value reaches the
parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

from mokd_det.engine.host_copy import HostCopy
from mokd_det.errors import InvalidLossError

__all__ = ["LossMonitor", "describe_images"]

_MAX_IMAGES_NAMED = 16


def describe_images(batch: Any) -> str:
    """The images of a micro-batch for an error message: ids and file names where the items carry them."""
    items = getattr(batch, "inputs", batch)
    names = getattr(items, "names", None)
    if names is not None:
        items = [{"file_name": name} for name in names]
    if not isinstance(items, Sequence) or not all(isinstance(item, Mapping) for item in items):
        return "a batch without image ids"
    described = []
    for position, item in enumerate(items):
        image_id, file_name = item.get("image_id"), item.get("file_name")
        parts = [] if image_id is None else [f"id {image_id}"]
        parts += [] if not file_name else [f"'{file_name}'"]
        described.append(" ".join(parts) or f"number {position} of the batch")
    shown = ", ".join(described[:_MAX_IMAGES_NAMED])
    more = len(described) - _MAX_IMAGES_NAMED
    return shown if more <= 0 else f"{shown} and {more} more"


class LossMonitor:
    """Collects the losses of one optimiser step.

    Each :meth:`watch` stacks the losses of a forward into one vector, gathers it over the ranks, and starts a
    single copy to the host; :meth:`check` reads the copies. Every rank sees every rank's losses, so all of
    them stop at the same step and with the same message, and none goes on with another's broken gradient.

    Args:
        iteration: index of the optimiser step, for the message.
        allow_negative: accept losses below 0 (balancers that take no logarithm).
    """

    def __init__(self, iteration: int, *, allow_negative: bool = False) -> None:
        self._iteration = iteration
        self._allow_negative = allow_negative
        self._watched: dict[int, tuple[tuple[str, ...], HostCopy, Any]] = {}

    def watch(self, losses: Mapping[str, Tensor], micro_batch: int, batch: Any) -> None:
        """Start reading the losses of micro-batch ``micro_batch``; a later call for the same one replaces
        it."""
        for name, value in losses.items():
            if not isinstance(value, Tensor) or value.numel() != 1:
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"a training forward must return scalar tensors; loss '{name}' has {found}")
        vector = torch.stack([value.detach().reshape(()).float() for value in losses.values()])
        world_size = comm.get_world_size()
        if world_size > 1:
            gathered = [torch.empty_like(vector) for _ in range(world_size)]
            dist.all_gather(gathered, vector)
            values = torch.stack(gathered)
        else:
            values = vector[None]
        self._watched[micro_batch] = (tuple(losses), HostCopy(values), batch)

    def check(self) -> dict[str, float]:
        """Wait for the losses and judge them.

        Returns:
            Each loss, averaged over ranks and micro-batches.

        Raises:
            InvalidLossError: a loss is NaN, infinite, or negative where that is not allowed; the message
                names the loss, the iteration, and the images of the micro-batch on the rank it appeared on.
        """
        sums: dict[str, float] = {}
        problems: list[tuple[str, float, int, int]] = []
        for micro_batch, (names, copy, _) in self._watched.items():
            values = copy.read().double()  # (ranks, losses)
            for name, mean in zip(names, values.mean(dim=0).tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + mean / len(self._watched)
            for rank, row in enumerate(values.tolist()):
                for name, value in zip(names, row, strict=True):
                    if not math.isfinite(value) or (value < 0 and not self._allow_negative):
                        problems.append((name, value, micro_batch, rank))
        if problems:
            self._raise(problems)
        return sums

    def _raise(self, problems: list[tuple[str, float, int, int]]) -> None:
        name, value, micro_batch, rank = problems[0]
        own = {index: describe_images(batch) for index, (_, _, batch) in self._watched.items()}
        images = comm.all_gather(own)[rank].get(micro_batch, "unknown")
        others = sorted({problem[0] for problem in problems} - {name})
        where = f" on rank {rank}" if comm.get_world_size() > 1 else ""
        also = f" (also {', '.join(others)})" if others else ""
        kind = f"{value:g}, but losses must not be negative" if math.isfinite(value) else f"{value:g}"
        raise InvalidLossError(
            f"loss '{name}' is {kind}{also} at iteration {self._iteration}{where}; images: {images}. "
            "Nothing was stepped: parameters and optimiser are those of the iteration before."
        )
