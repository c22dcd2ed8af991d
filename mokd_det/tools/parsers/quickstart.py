"""The main job on bundled data: a teacher, a student alone, the same student with MoKD; minutes on two cores.

    python -m mokd_det quickstart --output output/demo
    python -m mokd_det quickstart --output output/demo --seeds 0 1 2
    python -m mokd_det quickstart --task classification --output output/demo_classification

Generates the digits, trains with configs/few_scenes/*.py from a teacher that the project brings,
evaluates on images that took no part in any choice, and writes results.md (what the committed replicates say, then
this run), results.json, predictions.png and curves.png. What is finished is not done again: after an interruption the
same command continues. The classification of single digits, with configs/quickstart_classification/*.py, trains its
teacher, and the student also with plain distillation and with VkD.

Exit status: 0; 2 for a mistake in the input; 130 after an interruption; a failed training's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.tools.parsers import command_parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, allow_abbrev=True)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="everything is written below it")
    add(
        "--task",
        choices=("detection", "classification"),
        default="detection",
        help="of the models (%(default)s)",
    )
    add("--seeds", type=int, nargs="+", default=[0], metavar="S", help="of the students (0)")
    add("--jobs", type=int, default=2, metavar="N", help="trainings at a time, one thread each (%(default)s)")
    add("--iterations", type=int, metavar="N", help="of each student instead of the config's")
    add(
        "--teacher-iterations",
        type=int,
        metavar="N",
        help="train the teacher, for so long, instead of the shipped one or of the config's iterations",
    )
    add(
        "--images",
        type=int,
        metavar="N",
        help="training images of the students (detection: 160, drawn anew for each seed; classification: 300)",
    )
    options = parser.parse_args(arguments)
    for name in ("jobs", "iterations", "teacher_iterations", "images"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: must be 1 or more")
    if min(options.seeds) < 0 or len(set(options.seeds)) != len(options.seeds):
        parser.error(f"--seeds {' '.join(map(str, options.seeds))}: must be different numbers from 0 up")
    return options
