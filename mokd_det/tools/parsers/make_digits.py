"""Generate the bundled detection data: scenes of scikit-learn's handwritten digits, in COCO format.

    python -m mokd_det digits                  # all kinds, below $DETECTRON2_DATASETS, or datasets
    python -m mokd_det digits digits --seed 1 --root elsewhere

Exit status: 0; 2 for a wrong argument.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.tools.parsers import command_parser

COUNTS = {"train": 2000, "val": 300, "test": 300}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("kinds", nargs="*", metavar="KIND", help="digits, digits_hard or digits_few (default: all)")
    add(
        "--root", type=Path, metavar="DIR", help="folder of all data sets ($DETECTRON2_DATASETS, or datasets)"
    )
    add("--seed", type=int, default=0, help="decides every image (%(default)s)")
    for split, count in COUNTS.items():
        add(f"--{split}", type=int, default=count, metavar="N", help="images (%(default)s)")
    return parser.parse_args(arguments)
