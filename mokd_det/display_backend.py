"""Matplotlib's display backend, which nothing here needs: all pictures go to files."""

from __future__ import annotations

import importlib.util
import os
import sys

__all__ = ["replace_missing_backend"]

_SHORT_NAMES = {"inline": "matplotlib_inline", "widget": "ipympl"}


def replace_missing_backend() -> None:
    """Put Agg in the place of a backend that is not installed in this environment.

    Notebooks name theirs in ``MPLBACKEND`` to all programs that they start, and matplotlib would end in a traceback, at
    its import or its first figure. A backend that is there stays, as does everything once matplotlib is imported.
    """
    name = os.environ.get("MPLBACKEND", "")
    package = _SHORT_NAMES.get(name) or name.removeprefix("module://").partition(".")[0]
    if "matplotlib" in sys.modules or not (name in _SHORT_NAMES or name.startswith("module://")):
        return
    if importlib.util.find_spec(package) is None:
        os.environ["MPLBACKEND"] = "Agg"
