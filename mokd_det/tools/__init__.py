"""The commands, one module each with ``main(arguments) -> exit status``: ``python -m mokd_det NAME``.

Their command lines are :mod:`mokd_det.tools.parsers`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from mokd_det.errors import ConfigError
from mokd_det.exit_status import exit_status

__all__ = ["command", "start", "writing"]


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


def command(
    reader: ModuleType, run: Callable[[argparse.Namespace], int | None]
) -> Callable[[Sequence[str] | None], int]:
    """The ``main`` of a command.

    Args:
        reader: its command line, a module of :mod:`mokd_det.tools.parsers`.
        run: its work; returns the exit status, None for 0.
    """

    def main(arguments: Sequence[str] | None = None) -> int:
        """Run the command; returns its exit status."""
        options = reader.parse(arguments)

        def work() -> int | None:
            if hasattr(reader, "check"):
                reader.check(options)
            return run(options)

        return exit_status(work)

    return main


@contextlib.contextmanager
def writing(output: Path) -> Iterator[None]:
    """For work that writes below ``--output``.

    Raises:
        ConfigError: an OSError inside, with its reason.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error}") from error
