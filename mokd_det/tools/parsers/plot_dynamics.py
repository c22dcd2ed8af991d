"""Draw how objectives pull at a model, of several runs side by side: losses, weights, conflict, dominance.

    python -m mokd_det dynamics output/demo/runs/student_seed0 output/demo/runs/mokd_seed0 --output dynamics.png
    python -m mokd_det dynamics RUN RUN --labels MoKD "fixed weights" --output dynamics.png

A run is an output directory of a training, finished or not. Conflict and dominance appear where the
run's balancer, or a diagnostics hook, has logged them. Exit status: 0; 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.errors import ConfigError
from mokd_det.tools.parsers import command_parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, allow_abbrev=True)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="output directory of a run")
    add("--output", required=True, type=Path, metavar="FILE.png", help="the picture")
    add("--labels", nargs="+", metavar="TEXT", help="one name per run (default: the directories')")
    add("--title", default="", metavar="TEXT", help="written above everything")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Refuse a wrong number of labels and a picture that is no PNG file."""
    if options.labels is not None and len(options.labels) != len(options.runs):
        raise ConfigError(
            f"--labels gives {len(options.labels)} names for {len(options.runs)} runs; give one per run"
        )
    if options.output.suffix != ".png":
        raise ConfigError(
            f"--output {options.output}: the picture is a PNG file; its name must end with .png"
        )
