"""What the machine took away, as an error that says so."""

from __future__ import annotations

import errno

from mokd_det.errors import MachineError

__all__ = ["is_lost_worker", "lost_worker", "machine_error"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_lost_worker(error: BaseException) -> bool:
    """Whether this is torch's error about a data-loading process, which it raises wherever the main process is.

    Also if what the main process was at (closing a half-written file, say) failed in turn.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError) and "DataLoader worker" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def machine_error(error: BaseException, when: str) -> MachineError | None:
    """The error to raise instead, if a data-loading process is gone or the disk is full; None for any other.

    Args:
        error: what torch or the system raised.
        when: what the main process was at, e.g. "at iteration 3".
    """
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return MachineError(
            f"no space to write {when}: {text}. Checkpoints are untouched; make room, then --resume"
        )
    return lost_worker(text, when) if is_lost_worker(error) else None


def lost_worker(text: str, when: str) -> MachineError:
    """The error about a data-loading process that is gone.

    Args:
        text: how it was noticed.
        when: what the main process was at.
    """
    return MachineError(
        f"a process that loads data is gone {when} ({text}). Often the machine was out of memory: lower num_workers "
        "of the loader, or enlarge /dev/shm; --resume continues from the last checkpoint"
    )
