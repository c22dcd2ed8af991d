"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["TimeSplit"]


class TimeSplit:
    """Seconds spent in named parts of a step.

    On the CPU these are wall times. On CUDA a part is bracketed by two events on the current stream: its time
    is that of the device, measured without synchronising, and readable once the device has passed the last
    event. Work that happens on the host only (waiting for data) is measured by ``host_only``.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._wall: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str, *, host_only: bool = False) -> Iterator[None]:
        """Add the time of the block to ``name``."""
        if self._on_cuda and not host_only:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            yield
            last.record()
            self._events.append((name, first, last))
        else:
            start = time.perf_counter()
            yield
            self._wall[name] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Seconds per part; waits for the device where it has not come to the end of the last part."""
        total = dict(self._wall)
        for name, first, last in self._events:
            last.synchronize()
            total[name] = total.get(name, 0.0) + first.elapsed_time(last) / 1000.0
        return total
