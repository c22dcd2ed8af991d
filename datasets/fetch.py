#!/usr/bin/env python
"""Fetch public photographs: python datasets/fetch.py bccd [cards cifar10_jpeg] (see datasets/README.md).

Downloads the pinned commit, converts it and checks SHA-256; --archive FILE takes a download that is there already.

Exit status: 0; 2 for a wrong argument, no network, or contents that are not the pinned ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="bccd, cards or cifar10_jpeg")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of all data sets ($DETECTRON2_DATASETS, or datasets)"
    )
    parser.add_argument(
        "--archive", type=Path, metavar="FILE", help="the .tar.gz of the pinned commit, of a single NAME"
    )
    options = parser.parse_args(arguments)
    if options.archive is not None and len(options.names) > 1:
        parser.error("--archive is the archive of one NAME; give one")

    from mokd_det.data.builtin import datasets_root
    from mokd_det.data.photographs import PHOTOGRAPHS, fetch
    from mokd_det.errors import MoKDError

    root = options.root or datasets_root()
    try:
        for name in options.names:
            how = "fetched" if fetch(name, root, options.archive) else "already there"
            print(f"{root / name}: {how}; licence: {PHOTOGRAPHS[name].licence}")
    except MoKDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
