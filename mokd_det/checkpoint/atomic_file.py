"""Files that are either the old one or the new one, never half of the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["atomic_write", "remove_leftovers"]

_MARK = ".partial-"


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that takes its place when the block ends well.

    The data are on the disk before the name changes (fsync of the file, then of the directory), so a crash or a power
    cut leaves the old file or the complete new one. If the block raises, the temporary file is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{_MARK}{os.getpid()}")
    try:
        with open(temporary, mode) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_leftovers(directory: str | os.PathLike[str]) -> None:
    """Delete the temporary files that killed writers left in ``directory`` and the folders in it."""
    for leftover in Path(directory).rglob(f".*{_MARK}*"):
        leftover.unlink(missing_ok=True)
