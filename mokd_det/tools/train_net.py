"""Train or evaluate what a LazyConfig file describes.

    python tools/train_net.py --config-file configs/quickstart/student.py train.max_iter=100
    python tools/train_net.py --config-file configs/COCO/mokd_vidt_nano.py --num-gpus 4
    python tools/train_net.py --config-file FILE --resume
    python tools/train_net.py --config-file FILE --eval-only train.init_checkpoint=student_final.pth

Exit status: 0; 2 for a mistake in the input, with one line on stderr; 1 for anything else.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mokd_det.config import load_config
from mokd_det.engine import argument_parser, default_setup, do_test, do_train, launch


def train(args: argparse.Namespace) -> None:
    """The work of one process.

    Raises:
        MoKDError: a mistake in the input.
    """
    cfg = load_config(args.config_file, args.opts, training=not args.eval_only)
    settings = default_setup(cfg, args)
    if args.eval_only:
        do_test(cfg, settings, resume=args.resume)
    else:
        do_train(cfg, settings, resume=args.resume)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = argument_parser(__doc__).parse_intermixed_args(arguments)
    return launch(
        train,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
