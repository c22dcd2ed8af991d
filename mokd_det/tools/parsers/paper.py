"""The paper's tables and figures from finished runs: tables 1 to 4 and C.1, figures 1, 6, C.1 and C.2.

    python -m mokd_det paper output --output output/paper
    python -m mokd_det paper output/vidt_nano output/mokd_vidt_nano --fps --output output/paper

Takes run directories, or folders of them. A cell is filled by the runs whose networks, method and balancer are those of
the config that stands for it (several: mean ± standard deviation), whatever their data and schedule: compare runs of
one schedule. What has no run is named. Writes paper.md and the pictures that it has points for.

Exit status: 0; 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.tools.parsers import command_parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="DIR", help="a run, or a folder of runs")
    add("--output", type=Path, metavar="DIR", help="for paper.md and the pictures")
    add("--fps", action="store_true", help="measure the students, one image of 800 x 1333")
    return parser.parse_args(arguments)
