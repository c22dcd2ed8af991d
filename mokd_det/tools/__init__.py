"""The commands, one module each with ``main(arguments) -> exit status``: ``python -m mokd_det NAME``."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence

from mokd_det.exit_status import exit_status

__all__ = ["start"]


def start(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command by its module's name; returns its exit status.

    Its arguments are read twice: first without the packages that its work needs, so that --help and what is wrong with
    them do not wait for these.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names in a file may hold what no encoding can write.
        sys.stdout.reconfigure(errors="backslashreplace")
    reader = importlib.import_module(f"{__name__}.parsers.{name}")
    options = reader.parse(given)
    if hasattr(reader, "check") and (refused := exit_status(lambda: reader.check(options))):
        return refused
    status: int = importlib.import_module(f"{__name__}.{name}").main(given)
    return status
