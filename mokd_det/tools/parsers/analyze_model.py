"""What a model costs: parameters, multiply-adds, latency, images per second, peak memory.

    python -m mokd_det analyze --config-file configs/quickstart/student.py --size 64 64
    python -m mokd_det analyze --config-file configs/COCO/mokd_vidt_nano.py --batch-size 4 --precision bf16
    python -m mokd_det analyze --config-file configs/COCO/mokd_vidt_nano.py --teacher --measure parameters flops
    python -m mokd_det analyze --all-variants

Of a distillation's configuration the student is measured, or with --teacher the teacher. The weights are random: none
of these numbers depends on them. --all-variants counts the parameters of ViDT-nano, tiny, small and base beside what
the paper prints. Exit status: 0; 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.errors import ConfigError
from mokd_det.model_zoo import find_config_file
from mokd_det.tools.parsers import command_parser, require_at_least

MEASURES = ("parameters", "flops", "latency", "memory")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--config-file", metavar="FILE", help="LazyConfig file")
    add("--all-variants", action="store_true", help="only count the parameters of ViDT's variants")
    add("--teacher", action="store_true", help="measure a distillation's teacher")
    add("--measure", nargs="+", choices=MEASURES, default=list(MEASURES), help="(default: all)")
    add("--batch-size", type=int, default=1, metavar="N", help="images per pass (%(default)s)")
    add(
        "--size",
        nargs=2,
        type=int,
        default=[800, 1328],
        metavar=("HEIGHT", "WIDTH"),
        help="pixels; the default 800 1328 is COCO's 800/1333 with both sides floored to multiples of 16, as ViDT does",
    )
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="autocast to it (%(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    add("--warmup", type=int, default=5, metavar="N", help="passes before those that count (%(default)s)")
    add("--repeats", type=int, default=20, metavar="N", help="passes that count (%(default)s)")
    add("--output", type=Path, metavar="FILE.json", help="write all numbers there")
    add("--set", nargs="+", default=[], metavar="key=value", help="overrides of the config file")
    options = parser.parse_args(arguments)
    if (options.config_file is None) == (not options.all_variants):
        parser.error("give --config-file FILE or --all-variants")
    return options


def check(options: argparse.Namespace) -> None:
    require_at_least(options, batch_size=1, warmup=0, repeats=1)
    if min(options.size) < 1:
        raise ConfigError(f"--size is {options.size}; both numbers must be 1 or more")
    if options.config_file is not None:
        find_config_file(options.config_file)
