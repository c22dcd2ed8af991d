"""Compare distillation methods fairly: methods x replicates x students on any config, one table, one picture.

    python -m mokd_det compare --config configs/quickstart/mokd.py --methods none vkd mokd --replicates 8 \\
        --teacher-config configs/quickstart/teacher.py --test-dataset digits_test --output output/compare
    python -m mokd_det compare --records output/compare/records elsewhere/records --output output/both

A replicate is a teacher, first weights of the student, an order of the images and a draw of them, all its own and
shared by all methods in it; odd replicates compute with a limited instruction set. Each run is a training in which
only the method and the balancer differ. What is finished is not done again: after an interruption the same command
continues, and with more replicates or methods it adds theirs. Writes comparison.md, .csv, .json and .png, and a
record of each run below records/, from which the table can be made again. See docs/comparing.md.

Exit status: 0; 2 for a mistake in the input; 130 after an interruption; a failed training's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.model_zoo import CONFIGS, find_config_file
from mokd_det.tools.parsers import command_parser

METHODS_FILE = CONFIGS / "common" / "methods.py"
REPLICATES = 8

PLACE = "{replicate}"
"""In ``--teacher``: the replicate's number."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--config", type=Path, nargs="+", metavar="FILE", help="of a distillation; one per student")
    add("--methods", nargs="+", metavar="NAME", help="from the methods file; NAME@W: weight W")
    add(
        "--replicates",
        type=int,
        nargs="+",
        default=[REPLICATES],
        metavar="R",
        help=f"how many, from 0, or two or more numbers: which ones ({REPLICATES})",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="everything is written below it")
    add("--teacher", metavar="FILE", help=f"the teacher's weights; {PLACE} in it: the replicate's number")
    add("--teacher-config", type=Path, metavar="FILE", help="trains the teachers that are not there")
    add("--teacher-set", nargs="+", default=[], metavar="key=value", help="overrides of --teacher-config")
    add(
        "--teacher-cache",
        action="store_true",
        help="keep each teacher's outputs; images are augmented in one way",
    )
    add(
        "--draw", type=int, metavar="N", help="each replicate trains on its own N images (classes: N of each)"
    )
    add(
        "--teacher-draw", type=int, metavar="N", help="the same for its teacher; the student's are among them"
    )
    add(
        "--test-dataset",
        metavar="NAME",
        help="for the final values: data set or split (default: validation data)",
    )
    add("--baseline", metavar="NAME", help="the others are compared with it (default: the first method)")
    add("--reference", type=float, metavar="VALUE", help="to be reached (default: the baseline's final mean)")
    add(
        "--metric",
        choices=("AP", "AP50", "AP75", "top1", "top5"),
        help="(default: AP of detectors, top1 of classifiers)",
    )
    add(
        "--set", nargs="+", default=[], metavar="key=value", help="overrides of every config, for all methods"
    )
    add("--methods-file", type=Path, default=METHODS_FILE, metavar="FILE", help="(configs/common/methods.py)")
    add("--jobs", type=int, metavar="N", help="trainings at a time (default: one per GPU, or per CPU core)")
    add("--tuning", metavar="TEXT", help="what search each method got (default: none); printed in the result")
    add(
        "--records",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="only compare these records; nothing is trained",
    )
    options = parser.parse_args(arguments)
    if not options.records and not (options.config and options.methods):
        parser.error("--config and --methods are needed, or --records")
    for name in ("jobs", "draw", "teacher_draw"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: must be 1 or more")
    options.replicates = read_replicates(parser, options.replicates)
    if options.methods and len(set(options.methods)) != len(options.methods):
        parser.error(f"--methods {' '.join(options.methods)}: a name stands there twice")
    stems = [path.stem for path in options.config or []]
    if len(set(stems)) != len(stems):
        parser.error(f"--config: the files' names tell the students apart, but two are called alike: {stems}")
    if options.methods:
        options.baseline = options.baseline or options.methods[0]
        if options.baseline not in options.methods:
            parser.error(f"--baseline {options.baseline}: is none of --methods {' '.join(options.methods)}")
    return options


def check(options: argparse.Namespace) -> None:
    """Refuse configuration files that are not there."""
    if options.records:
        return
    for path in [*options.config, *filter(None, [options.teacher_config])]:
        find_config_file(path)
    find_config_file(options.methods_file, "methods file")


def read_replicates(parser: argparse.ArgumentParser, given: Sequence[int]) -> list[int]:
    """The replicates' numbers: a single number says how many."""
    numbers = list(range(given[0])) if len(given) == 1 else list(given)
    if len(numbers) < 2 or min(numbers) < 0 or len(set(numbers)) != len(numbers):
        parser.error(
            f"--replicates {' '.join(map(str, given))}: must be 2 or more of them, or different numbers from 0 up"
        )
    return numbers
