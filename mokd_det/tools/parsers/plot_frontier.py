"""Draw the objectives of finished runs on validation images against each other: the frontier of a sweep of weights.

    python -m mokd_det frontier RUN RUN RUN --labels "weight 1" "weight 4" amortised --dataset NAME --output a.png

A run is the output folder of a finished training of a detector with two objectives, or of a student alone, whose loss
is drawn as a line. Runs with fixed weights are joined in the order of their weights; a balancer that reaches what no
fixed weight does lies below and to the left of that line. Losses of unlike methods do not compare and get a panel
each. The numbers stand in a.json beside the picture. Exit status: 0; 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.tools.parsers import command_parser, plot_dynamics


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, allow_abbrev=True)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="output folder of a finished training")
    add("--dataset", required=True, metavar="NAME", help="registered name of the validation data")
    add("--images", type=int, default=256, metavar="N", help="at most (default: 256)")
    add("--output", required=True, type=Path, metavar="FILE.png", help="the picture")
    add("--labels", nargs="+", metavar="TEXT", help="one name per run (default: the folders')")
    add("--title", default="", metavar="TEXT", help="written above everything")
    return parser.parse_args(arguments)


check = plot_dynamics.check
