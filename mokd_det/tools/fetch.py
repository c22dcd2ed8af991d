"""Fetch public photographs with boxes or classes, pinned and checked.

The command line: :mod:`mokd_det.tools.parsers.fetch`.
"""

from __future__ import annotations

import argparse

from mokd_det.data.builtin import datasets_root
from mokd_det.data.photographs import PHOTOGRAPHS, fetch
from mokd_det.tools import command
from mokd_det.tools.parsers import fetch as reader


def run(options: argparse.Namespace) -> None:
    """Fetch what is not there yet."""
    root = options.root or datasets_root()
    for name in options.names:
        how = "fetched" if fetch(name, root, options.archive) else "already there"
        print(f"{root / name}: {how}; licence: {PHOTOGRAPHS[name].licence}")


main = command(reader, run)
