"""Forwards that leave no trace in a model's buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["BufferCopy", "frozen_buffers"]


class BufferCopy:
    """What the buffers of a model hold at the time of construction, for a step that may have to be taken back.

    It costs the memory of the buffers once more.
    """

    def __init__(self, model: nn.Module) -> None:
        self._values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    @torch.no_grad()
    def put_back(self) -> None:
        """Write the values into the buffers again; only when no graph needs what is in them now."""
        for buffer, value in self._values:
            buffer.copy_(value)


@contextmanager
def frozen_buffers(model: nn.Module) -> Iterator[None]:
    """Let the forwards inside work on copies of the buffers: BatchNorm statistics, counters, any module's own.

    The modules stay in training mode, so a BatchNorm normalises by the batch as in the forward that is
    repeated. The buffers themselves are not written at all (restoring them afterwards would invalidate graphs
    that saved them, and BatchNorm's kernels change them without counting a new version).
    """
    originals = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    for module, name, buffer in originals:
        module._buffers[name] = buffer.detach().clone()
    try:
        yield
    finally:
        for module, name, buffer in originals:
            module._buffers[name] = buffer
