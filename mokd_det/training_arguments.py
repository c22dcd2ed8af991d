"""The command line of a training, without anything that takes time to import."""

from __future__ import annotations

import argparse

__all__ = ["argument_parser"]


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that all tools share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="LazyConfig file, or the name of one of mokd_det's",
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="processes on this machine: GPUs, or CPU processes without one",
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines that take part")
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0"
    )
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where the processes meet; needed with several machines",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint of the output directory"
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate train.init_checkpoint, or with --resume the newest"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, try one batch, say how long it takes and what would be written; write nothing",
    )
    parser.add_argument(
        "opts", nargs="*", metavar="key=value", help="overrides of the config file, e.g. train.max_iter=100"
    )
    return parser
