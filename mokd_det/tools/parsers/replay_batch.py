"""Run a step again that was refused for NaN or infinity, and say where they begin.

    python -m mokd_det replay output/demo/runs/mokd/bad_batches/iteration_0000042_rank0.pth
    python -m mokd_det replay FILE --config-file output/other/config.yaml train.device=cpu

It prints the images, which of the numbers that entered are not finite, the first module whose output is not, every
loss, and whether its gradient is finite. The configuration is the run's own config.yaml unless another one is
given; like every config file it is a program: use those that you trust.

Exit status: 0; 2 for a file that cannot be replayed, with one line on stderr.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mokd_det.tools.parsers import command_parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("file", metavar="FILE", help="from the folder bad_batches of a run")
    add("--config-file", metavar="FILE", help="default: config.yaml of the run that FILE is in")
    add("opts", nargs="*", metavar="key=value", help="overrides of the config file")
    return parser.parse_intermixed_args(arguments)
