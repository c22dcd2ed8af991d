"""Check a data set in COCO format: what is in it, and everything that is wrong with it.

    python -m mokd_det check train.json images/
    python -m mokd_det check train.json images/ --images decode --workers 8 --output report/
    python -m mokd_det check digits_train --json

--output writes report.txt, report.json and contact_sheet.png. Exit status: 0 without errors; 1 with errors, which
training would refuse (with --strict: with warnings too); 2 if the data set cannot be checked at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.tools.parsers import command_parser, require_at_least


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("source", nargs="+", metavar="SOURCE", help="annotation file and image folder, or a registered name")
    add(
        "--images",
        choices=("list", "header", "decode"),
        default="header",
        help="look at image files: that they exist, at their headers (default), at every pixel and for equal contents",
    )
    add("--workers", type=int, default=0, metavar="N", help="processes that read images")
    add("--drop-bad-boxes", action="store_true", help="boxes without area are no errors")
    add("--strict", action="store_true", help="warnings count as errors for the exit status")
    add("--json", action="store_true", help="print the report as JSON")
    add("--examples", type=int, default=5, metavar="N", help="messages per kind of problem")
    add("--output", type=Path, metavar="DIR", help="write report and contact sheet there")
    add("--samples", type=int, default=24, metavar="N", help="images on the contact sheet")
    add("--seed", type=int, default=0, help="of the choice of these images")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    require_at_least(options, workers=0, examples=0, samples=1, seed=0)
