"""What the machine took away, as an error that says so."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mokd_det.engine.termination import TrainingStopped
from mokd_det.errors import ConfigError, MachineError, MoKDError, first_line

__all__ = ["error_chain", "is_lost_worker", "machine_error", "machine_errors", "next_batch"]

logger = logging.getLogger(__name__)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and those during whose handling these arose."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def is_lost_worker(error: BaseException) -> bool:
    """Whether this is torch's error about a data-loading process, which it raises wherever the main process is.

    Also if what the main process was at (closing a half-written file, say) failed in turn.
    """
    return any(isinstance(e, RuntimeError) and "DataLoader worker" in str(e) for e in error_chain(error))


def machine_error(error: BaseException, when: str) -> MachineError | None:
    """The error to raise instead, if a data-loading process is gone or the disk is full; None for any other.

    ``when`` says what the main process was at, e.g. "at iteration 3".
    """
    text = first_line(error).rstrip(". ")
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return MachineError(
            f"no space to write {when}: {text}. Checkpoints are untouched; make room, then --resume"
        )
    return _lost_worker(text, when) if is_lost_worker(error) else None


@contextmanager
def machine_errors(where: Callable[[], str]) -> Iterator[None]:
    """Let errors of the machine leave a training as what :func:`machine_error` makes of them, and log where any other
    unforeseen one happened."""
    try:
        yield
    except (MoKDError, TrainingStopped):
        raise
    except Exception as error:
        lost = machine_error(error, where())
        if lost is not None:
            raise lost from error
        logger.exception("Training failed %s", where())
        raise


def next_batch(batches: Iterator[Any], iteration: int) -> Any:
    """The next batch of a training.

    Raises:
        ConfigError: there is none.
        MachineError: the process that should load it is gone.
    """
    try:
        return next(batches)
    except StopIteration:
        raise ConfigError(
            f"the training data loader ended at iteration {iteration}; dataloader.train must be endless"
        ) from None
    except (ConnectionError, FileNotFoundError, EOFError) as error:
        # A process that is killed while it hands over a batch breaks the pipe before torch sees it end. What the
        # mapper raised carries torch's words about the process it happened in.
        if "in DataLoader worker process" in str(error):
            raise
        raise _lost_worker(type(error).__name__, f"at iteration {iteration}") from error


def _lost_worker(text: str, when: str) -> MachineError:
    return MachineError(
        f"a process that loads data is gone {when} ({text}). Often the machine was out of memory: lower num_workers "
        "of the loader, or enlarge /dev/shm; --resume continues from the last checkpoint"
    )
