"""Queue a training on a SLURM cluster, on one or several machines; it is queued again when its time is up.

    python -m mokd_det submit --nodes 2 --gpus 8 --hours 24 --slurm partition=gpu cpus_per_task=12 -- \\
        --config-file configs/COCO/mokd_vidt_nano.py train.output_dir=output/mokd_vidt_nano
    python -m mokd_det submit --local --gpus 2 --wait -- --config-file configs/quickstart/student.py

What stands behind -- are arguments of train; --resume is added. The configuration is read before anything is
queued. Needs the package submitit. Exit status: 0; 2 for a mistake in the input, or with --wait a training that failed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.errors import ConfigError
from mokd_det.tools.parsers import command_parser, train_net


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--nodes", type=int, default=1, metavar="N", help="machines (%(default)s)")
    add("--gpus", type=int, default=1, metavar="N", help="processes on each, with a GPU each (%(default)s)")
    add("--hours", type=float, default=24.0, metavar="H", help="time limit (%(default)s)")
    add(
        "--notice",
        type=int,
        default=120,
        metavar="S",
        help="seconds before the end at which the training finishes its step and saves (%(default)s)",
    )
    add("--requeues", type=int, default=10, metavar="N", help="that the time limit may cause (%(default)s)")
    add("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="arguments of sbatch, e.g. partition=gpu")
    add("--logs", type=Path, default=Path("output/jobs"), metavar="DIR", help="(%(default)s)")
    add("--local", action="store_true", help="run on this machine, to try it")
    add("--wait", action="store_true", help="until the job has ended")
    add("training", nargs="+", metavar="-- ARGUMENT", help="of python -m mokd_det train")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Refuse settings that are not sbatch's, and arguments of the training that are the job's or wrong."""
    training = train_net.parse(options.training)
    if (training.num_gpus, training.num_machines, training.dist_url) != (1, 1, "auto"):
        raise ConfigError(
            "--num-gpus, --num-machines and --dist-url are the job's: take --gpus and --nodes before --"
        )
    train_net.check(training)
    for setting in options.slurm:
        if "=" not in setting:
            raise ConfigError(f"--slurm {setting}: must be KEY=VALUE")
