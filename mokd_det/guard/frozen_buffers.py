"""Forwards that leave no trace in a model's buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["frozen_buffers"]


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
