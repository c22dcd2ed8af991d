"""Ending a training in order: when the system asks for it (pre-emption, a time limit), or somebody presses Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_STOPPED",
    "FIRST_INTERRUPT",
    "INTERRUPTED",
    "StopSignal",
    "TrainingStopped",
    "interrupts_stop",
]

EXIT_STOPPED = 128 + signal.SIGTERM
"""Exit status (143) of a training that SIGTERM ended in order: saved, and ready for --resume."""

EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Exit status (130) of what Ctrl-C ended."""

FIRST_INTERRUPT = "Ctrl-C: finishing this step, then saving; once more ends at once"
INTERRUPTED = "interrupted"

_interrupts_stop = False


class TrainingStopped(Exception):
    """A training that a signal ended after a complete step, saved; not a failure.

    Attributes:
        number: of the signal; None: it came to another rank.
    """

    def __init__(self, message: str, number: signal.Signals | None = None) -> None:
        super().__init__(message)
        self.number = number


@contextlib.contextmanager
def interrupts_stop() -> Iterator[None]:
    """Inside, a :class:`StopSignal` notes SIGINT too: for programs; in a notebook an interrupt stays Python's own."""
    global _interrupts_stop
    before, _interrupts_stop = _interrupts_stop, True
    try:
        yield
    finally:
        _interrupts_stop = before


class StopSignal:
    """While it is entered, SIGTERM, and within :func:`interrupts_stop` SIGINT, is noted instead of ending the process.

    A second SIGINT ends the process at once, also from within a long call of torch. Only the main thread of a process
    can receive signals: entered in another one, it notes nothing.

    Attributes:
        number: of the first signal that came; None: none.
    """

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._owner = 0
        self._alarm: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def __enter__(self) -> StopSignal:
        self.number = None
        self._owner = os.getpid()
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGTERM, signal.SIGINT] if _interrupts_stop else [signal.SIGTERM]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        if self._alarm is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._alarm)
            self._alarm = None
        for number, before in self._before.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A process that was forked meanwhile has this handler too.
        if os.getpid() != self._owner:
            return
        if self.number is None:
            self.number = signal.Signals(number)
        if number == signal.SIGINT and self._alarm is None:
            os.write(2, f"{FIRST_INTERRUPT}\n".encode())
            self._alarm = _end_at_next_interrupt()


def _end_at_next_interrupt() -> int:
    """Let the next SIGINT end the process; closing the returned descriptor takes that back.

    Python's own handlers wait until the main thread is back from a call of torch, which takes seconds in a backward
    pass and for ever where a partner is gone. The number of a signal is written to this descriptor at once.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)

    def wait() -> None:
        while (seen := os.read(read, 1)) and seen[0] != signal.SIGINT:
            pass
        if seen:
            os.write(2, f"{INTERRUPTED}\n".encode())
            os._exit(EXIT_INTERRUPTED)
        os.close(read)

    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=wait, daemon=True, name="second interrupt").start()
    return write
