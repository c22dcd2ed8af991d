"""Train or evaluate what a LazyConfig file describes.

The command line: :mod:`mokd_det.tools.parsers.train_net`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mokd_det.config import load_config
from mokd_det.engine import default_setup, do_test, do_train, launch
from mokd_det.engine.dry_run import dry_run
from mokd_det.engine.preflight import check_run
from mokd_det.exit_status import exit_status
from mokd_det.tools.parsers.train_net import parse


def train(args: argparse.Namespace) -> None:
    """The work of one process."""
    cfg = load_config(args.config_file, args.opts, training=not args.eval_only)
    settings = default_setup(cfg, args)
    if args.eval_only:
        do_test(cfg, settings, resume=args.resume)
    else:
        do_train(cfg, settings, resume=args.resume)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = parse(arguments)
    if args.dry_run:
        return exit_status(lambda: dry_run(args))
    return launch(
        train,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
        check=check_run,
    )
