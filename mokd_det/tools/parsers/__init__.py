"""The command lines of :mod:`mokd_det.tools`, one module each, whose text is the command's help.

``parse(arguments)`` reads a command line (None: this process's); ``check(options)``, where there is one, refuses
what is not there, contradicts itself or is out of range by a :class:`~mokd_det.errors.MoKDError` that names the option
and says what is right. They import nothing that takes time: --help and a wrong argument are answered before torch is
there.
"""

from __future__ import annotations

import argparse
from typing import Any

from mokd_det.errors import ConfigError

__all__ = ["command_parser", "require_at_least"]


def command_parser(text: str | None, **settings: Any) -> argparse.ArgumentParser:
    """A parser that shows this text as it stands; ``settings`` of :class:`argparse.ArgumentParser`."""
    settings = {"description": text, "allow_abbrev": False, **settings}
    return argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)


def require_at_least(options: argparse.Namespace, **smallest: int) -> None:
    """Raise a ConfigError for an option, by its attribute's name, that is given and below its smallest value."""
    for name, least in smallest.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be {least} or more")
