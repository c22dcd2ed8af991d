"""How far long work has come, and how much longer it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TextIO, TypeVar

__all__ = ["format_duration", "progress"]

Item = TypeVar("Item")


def progress(
    iterable: Iterable[Item],
    total: int | None = None,
    what: str = "images",
    *,
    every: float = 5.0,
    quiet: float = 3.0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """Hand on the items and print, now and then, how many are done, how fast, and how long the rest will take.

    Whole lines without control characters, so that a terminal, a log file and a pipe show the same. Work that is
    done within ``quiet`` seconds prints nothing.

    Args:
        iterable: what to iterate over.
        total: how many items there will be; None: ``len(iterable)``, or unknown (then no share and no time left).
        what: the items, in the plural.
        every: seconds between two lines, at least.
        quiet: seconds before the first line.
        stream: where to print; None: ``sys.stderr``.
        clock: seconds, from any origin.

    Yields:
        The items of ``iterable``.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    start = clock()
    due = start + quiet
    done, printed = 0, False
    for item in iterable:
        yield item
        done += 1
        now = clock()
        if now >= due and done != total:
            _print(_line(what, done, total, now - start), stream)
            due, printed = now + every, True
    if printed:
        _print(f"{what}: {done:,} in {format_duration(clock() - start)}", stream)


def _line(what: str, done: int, total: int | None, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    speed = f"{rate:.3g} per second" if rate >= 1 else f"{1 / rate:.3g} s each"
    # A total that turned out too small says nothing of the end.
    if total is None or done > total:
        return f"{what}: {done:,}, {speed}, {format_duration(seconds)} so far"
    left = format_duration((total - done) / rate)
    return f"{what}: {done:,} of {total:,} ({done / total:.0%}), {speed}, about {left} left"


def format_duration(seconds: float) -> str:
    """``8 s``, ``2 min 05 s`` or ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _print(text: str, stream: TextIO | None) -> None:
    print(text, file=sys.stderr if stream is None else stream, flush=True)
