#!/usr/bin/env python
"""Train or evaluate what a LazyConfig file describes.

    python tools/train_net.py --config-file configs/quickstart/student.py train.max_iter=100
    python tools/train_net.py --config-file configs/COCO/mokd_vidt_nano.py --num-gpus 4
    python tools/train_net.py --config-file FILE --resume
    python tools/train_net.py --config-file FILE --eval-only train.init_checkpoint=student_final.pth

Exit status: 0; 2 for a mistake in the input, with one line on stderr; 1 for anything else.
"""

import argparse
import sys

from mokd_det.config import load_config
from mokd_det.engine import argument_parser, default_setup, do_test, do_train, launch


def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts, training=not args.eval_only)
    settings = default_setup(cfg, args)
    if args.eval_only:
        do_test(cfg, settings, resume=args.resume)
    else:
        do_train(cfg, settings, resume=args.resume)


if __name__ == "__main__":
    arguments = argument_parser(__doc__).parse_intermixed_args()
    sys.exit(
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments,),
        )
    )
