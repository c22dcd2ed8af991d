"""Scalars of a step on their way from the device to the storage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor

from mokd_det.engine.time_split import TimeSplit
from mokd_det.guard.host_copy import HostCopy

__all__ = ["ScalarQueue"]


class ScalarQueue:
    """Copies start at once and are read one step later, so that no step waits for its own numbers."""

    def __init__(self) -> None:
        self._waiting: list[_StepScalars] = []

    def put(self, iteration: int, scalars: Mapping[str, Tensor | float], times: TimeSplit) -> None:
        """The numbers of a step, and its times as ``<part>_time``."""
        self._waiting.append(_StepScalars(iteration, scalars, times))

    def flush(self, storage: EventStorage) -> None:
        """Store what waits, under the iterations it belongs to."""
        for step in self._waiting:
            storage.put_scalars(cur_iter=step.iteration, **step.read())
        self._waiting.clear()


class _StepScalars:
    def __init__(self, iteration: int, scalars: Mapping[str, Tensor | float], times: TimeSplit) -> None:
        self.iteration = iteration
        on_device = {name: v for name, v in scalars.items() if isinstance(v, Tensor) and v.is_cuda}
        self._numbers = {name: float(value) for name, value in scalars.items() if name not in on_device}
        self._names = tuple(on_device)
        stacked = [value.detach().reshape(()).double() for value in on_device.values()]
        self._copy = HostCopy(torch.stack(stacked)) if stacked else None
        self._times = times

    def read(self) -> dict[str, float]:
        scalars = dict(self._numbers)
        if self._copy is not None:
            scalars.update(zip(self._names, self._copy.read().tolist(), strict=True))
        scalars.update((f"{name}_time", value) for name, value in self._times.seconds().items())
        return scalars
