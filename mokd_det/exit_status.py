"""From how a tool's work ends to its exit status."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

from mokd_det.errors import MoKDError

__all__ = ["exit_status"]

INTERRUPTED = 130
"""What a shell reports of a program that Ctrl-C ended: 128 + 2."""

NOBODY_READS = 141
"""What a shell reports of a program that SIGPIPE ended: 128 + 13."""


def exit_status(work: Callable[[], int | None]) -> int:
    """Do a tool's work.

    Args:
        work: returns an exit status, or None for 0.

    Returns:
        That status; 2 for a mistake in the input, which becomes one line on stderr; 130 after Ctrl-C; 141 where the
        reader of the output has left early, as ``head`` does.
    """
    try:
        status = work()
        sys.stdout.flush()
    except MoKDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return NOBODY_READS
    return status or 0


def _output_is_closed() -> bool:
    """Whether standard output is a pipe without a reader. It is closed for good then: Python flushes once more at its
    end, and would complain again."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True
