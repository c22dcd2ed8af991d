"""Work on a CUDA stream of its own, beside what the current one does meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["SideStream", "SideWork"]

logger = logging.getLogger(__name__)


class SideWork:
    """Work that was queued on a side stream.

    Attributes:
        events: its first and its last, with timing.
    """

    def __init__(self, first: torch.cuda.Event, last: torch.cuda.Event) -> None:
        self.events = (first, last)

    def wait(self) -> None:
        """Let what is queued on the current stream from now on come after the work; the host does not wait."""
        torch.cuda.current_stream().wait_event(self.events[1])

    def hand_over(self, results: Iterable[Tensor]) -> None:
        """Keep the memory of the work's results until the current stream is done with them."""
        current = torch.cuda.current_stream()
        for tensor in results:
            if tensor.is_cuda:
                tensor.record_stream(current)


class SideStream:
    """Makes its CUDA stream when the first work comes; on a CPU work is done as if it were not there."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._told = False

    def __getstate__(self) -> dict[str, Any]:
        # A stream is this process's.
        return {**self.__dict__, "_stream": None}

    @contextmanager
    def work(self, device: torch.device) -> Iterator[SideWork | None]:
        """Queue what the block does on the side stream, after all that the current one has been given.

        What the block reads must be kept until :meth:`SideWork.wait` was called: its memory belongs to the current
        stream, which would use it again. Yields None without CUDA.
        """
        if device.type != "cuda":
            if not self._told:
                logger.info("teacher_stream has no effect on %s: there are no streams", device.type)
                self._told = True
            yield None
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            first.record()
            yield SideWork(first, last)
            last.record()
