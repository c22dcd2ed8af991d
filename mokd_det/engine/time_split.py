"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch

__all__ = ["TimeSplit"]

Bracket: TypeAlias = "tuple[torch.cuda.Event, torch.cuda.Event]"


class TimeSplit:
    """Seconds spent in named parts of a step.

    On the CPU these are wall times. On CUDA a part is bracketed by two events on the current stream: its time
    is that of the device, measured without synchronising, and readable once the device has passed the last
    event. Work that happens on the host only (waiting for data) is measured by ``host_only``. A part that queues its
    work on another stream hands over that stream's events instead; its time then runs beside that of other parts.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._wall: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str, *, host_only: bool = False) -> Iterator[list[Bracket]]:
        """Add the time of the block to ``name``.

        Yields:
            A list for the events around the work, if that went to another stream than the current one.
        """
        elsewhere: list[Bracket] = []
        if self._on_cuda and not host_only:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            yield elsewhere
            last.record()
            self._events += [(name, *bracket) for bracket in elsewhere or [(first, last)]]
        else:
            start = time.perf_counter()
            yield elsewhere
            self._wall[name] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Seconds per part; waits for the device where it has not come to the end of the last part."""
        total = dict(self._wall)
        for name, first, last in self._events:
            last.synchronize()
            total[name] = total.get(name, 0.0) + first.elapsed_time(last) / 1000.0
        return total
