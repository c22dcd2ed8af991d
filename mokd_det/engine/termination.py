"""Ending a training in order when the system asks for it (pre-emption, a time limit)."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopSignal", "TrainingStopped"]


class TrainingStopped(Exception):
    """A training that SIGTERM ended after a complete step, saved; not a failure."""


class StopSignal:
    """While it is entered, SIGTERM is noted instead of ending the process.

    Only the main thread of a process can receive signals: entered in another one, it notes nothing.

    Attributes:
        requested: whether the signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> StopSignal:
        self.requested = False
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._installed:
            # None stands for a handler that was not installed from Python.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
