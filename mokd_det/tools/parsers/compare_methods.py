"""Compare distillation methods fairly: methods x seeds x students on any config, one table, one picture.

    python tools/compare_methods.py --config configs/quickstart/mokd.py --methods none vkd mokd --seeds 0 1 2 \\
        --teacher output/demo/runs/teacher/student_final.pth --test-dataset digits_test --output output/compare

Each run is a training by tools/train_net.py in which only the method and the balancer differ. What is finished is
not done again: after an interruption the same command continues, and with more seeds or methods it adds theirs.
Writes comparison.md, comparison.csv, comparison.json and comparison.png. See docs/comparing.md.

Exit status: 0; 2 for a mistake in the input; 130 after an interruption; a failed training's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.model_zoo import CONFIGS

METHODS_FILE = CONFIGS / "common" / "methods.py"

__all__ = ["parse"]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="of a distillation; one per student",
    )
    add("--methods", nargs="+", required=True, metavar="NAME", help="from the methods file; NAME@W: weight W")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="of every method (0 1 2)")
    add("--output", type=Path, required=True, metavar="DIR", help="everything is written below it")
    add("--teacher", type=Path, metavar="FILE", help="the teacher's weights instead of the config's")
    add(
        "--teacher-config",
        type=Path,
        metavar="FILE",
        help="trains the teacher first if --teacher is not there",
    )
    add(
        "--test-dataset",
        metavar="NAME",
        help="for the final values, a data set or a split (default: the validation data)",
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
    add(
        "--tuning",
        metavar="TEXT",
        help="what search each method got (default: none); printed in the result",
    )
    options = parser.parse_args(arguments)
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: must be 1 or more")
    if min(options.seeds) < 0 or len(set(options.seeds)) != len(options.seeds):
        parser.error(f"--seeds {' '.join(map(str, options.seeds))}: must be different numbers from 0 up")
    if len(set(options.methods)) != len(options.methods):
        parser.error(f"--methods {' '.join(options.methods)}: a name stands there twice")
    stems = [path.stem for path in options.config]
    if len(set(stems)) != len(stems):
        parser.error(f"--config: the files' names tell the students apart, but two are called alike: {stems}")
    options.baseline = options.baseline or options.methods[0]
    if options.baseline not in options.methods:
        parser.error(f"--baseline {options.baseline}: is none of --methods {' '.join(options.methods)}")
    return options
