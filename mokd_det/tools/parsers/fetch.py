"""Fetch public photographs with boxes or classes, pinned and checked: bccd, cards, cifar10_jpeg.

    python -m mokd_det fetch bccd cards

Downloads the pinned commit, converts it and checks SHA-256; --archive FILE takes a download that is there already.

Exit status: 0; 2 for a wrong argument, no network, or contents that are not the pinned ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.tools.parsers import command_parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help="bccd, cards or cifar10_jpeg")
    add(
        "--root", type=Path, metavar="DIR", help="folder of all data sets ($DETECTRON2_DATASETS, or datasets)"
    )
    add("--archive", type=Path, metavar="FILE", help="the .tar.gz of the pinned commit, of a single NAME")
    options = parser.parse_args(arguments)
    if options.archive is not None and len(options.names) > 1:
        parser.error("--archive is the archive of one NAME; give one")
    return options
