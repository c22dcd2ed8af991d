"""One self-contained HTML page about runs or a comparison: results, losses, weights, errors, pictures, settings.

    python -m mokd_det report output/demo/runs/student_seed0 output/demo/runs/mokd_seed0 --dataset digits_test
    python -m mokd_det report output/compare --output compare.html
    python -m mokd_det report RUN --no-models

A RUN is an output directory of a training, finished or not, or of a comparison. Of finished runs
the trained student is run on the images of its evaluation, for errors, pictures and speed. The page opens in any
browser without a network. Exit status: 0; 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.errors import ConfigError
from mokd_det.tools.parsers import command_parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="output directory of a run or a comparison")
    add("--output", type=Path, metavar="FILE.html", help="the page (default: report.html in the first RUN)")
    add("--title", metavar="TEXT", help="its heading")
    add(
        "--labels",
        nargs="+",
        metavar="TEXT",
        help="one name per RUN (default: the directories'); runs with equal names are seeds of one",
    )
    add("--dataset", metavar="NAME", help="run the models on this data set instead of the config's")
    add("--images", type=int, default=500, metavar="N", help="run them on the first N images (%(default)s)")
    add("--pictures", type=int, default=6, metavar="N", help="show N of these (%(default)s)")
    add(
        "--score",
        type=float,
        default=0.5,
        metavar="S",
        help="of the predictions shown, at least (%(default)s)",
    )
    add(
        "--thresholds",
        nargs="+",
        type=float,
        default=[0.5, 0.75],
        metavar="IOU",
        help="of the box errors (0.5 0.75)",
    )
    add("--no-models", action="store_true", help="run no model: only what the runs have logged")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    if options.images < 1 or options.pictures < 0:
        raise ConfigError(
            f"--images {options.images} --pictures {options.pictures}: must be at least 1 and at least 0"
        )
