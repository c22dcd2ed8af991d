"""One folder, one writer: a second run in it would mix its configuration and files with the first one's."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mokd_det.errors import ConfigError

__all__ = ["lock_folder", "locked_folder", "unlock_folder"]

logger = logging.getLogger(__name__)

_NAME = ".lock"
_held: dict[Path, int] = {}
"""Folder → descriptor of its lock, which this process has."""


def lock_folder(folder: str | os.PathLike[str], what: str) -> int:
    """Keep other processes that ask for it out of a folder until :func:`unlock_folder`, or this process's end.

    The system gives up the lock of a process that was killed. Asked twice, this process has it once.

    Args:
        folder: it exists.
        what: the option that names it, for the message.

    Returns:
        A descriptor: the lock lasts as long as any process to which it was handed on has it open. -1 where the file
        system knows no locks (a warning says so).

    Raises:
        ConfigError: another process has it, which is named; or the folder cannot be written to.
    """
    path = Path(folder).resolve() / _NAME
    if path.parent in _held:
        return _held[path.parent]
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(f"{what} '{folder}' cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise ConfigError(
                f"{what} '{folder}' is in use by {holder}; give another folder, or wait for it to end"
            ) from None
        except OSError as error:
            os.close(descriptor)
            logger.warning(
                "'%s' cannot be locked (%s): see to it that nothing else writes there", folder, error
            )
            return -1
        if _is_still(path, descriptor):
            break
        # Its holder has left and taken the file with it in between.
        os.close(descriptor)
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "command": sys.argv, "since": time.time()}
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(facts).encode())
    _held[path.parent] = descriptor
    return descriptor


def unlock_folder(folder: str | os.PathLike[str]) -> None:
    """Let others in again; nothing happens without a lock."""
    descriptor = _held.pop(Path(folder).resolve(), None)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.unlink(Path(folder).resolve() / _NAME)
        os.close(descriptor)


@contextlib.contextmanager
def locked_folder(folder: str | os.PathLike[str], what: str) -> Iterator[int]:
    """Make a folder, and keep it inside; see :func:`lock_folder`.

    Raises:
        ConfigError: it cannot be made or written to, or another process has it.
    """
    if Path(folder).resolve() in _held:
        raise ConfigError(f"{what} '{folder}' is in use by process {os.getpid()}, this one")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{what} '{folder}' cannot be made: {error.strerror}") from error
    try:
        yield lock_folder(folder, what)
    finally:
        unlock_folder(folder)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _holder(descriptor: int) -> str:
    """Who has the lock, as far as the file says it."""
    try:
        facts = json.loads(os.pread(descriptor, 1 << 16, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["since"]))
        command = f"{Path(facts['command'][0]).name} {shlex.join(facts['command'][1:])}".rstrip()
        holder = f"process {facts['pid']} on {facts['host']} since {since} ({command})"
        if facts["host"] == socket.gethostname() and not Path(f"/proc/{facts['pid']}").exists():
            return f"a process that was left running by {holder}"
        return holder
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "another process"


def _forget_after_fork() -> None:
    # A worker that outlives its parent for some seconds would keep the lock.
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
