"""Train or evaluate what a LazyConfig file describes.

    python -m mokd_det train --config-file configs/quickstart/student.py train.max_iter=100
    python -m mokd_det train --config-file configs/COCO/mokd_vidt_nano.py --num-gpus 4
    python -m mokd_det train --config-file FILE --dry-run
    python -m mokd_det train --config-file FILE --resume
    python -m mokd_det train --config-file FILE --eval-only train.init_checkpoint=student_final.pth

Exit status: 0; 2 for a mistake in the input, with one line on stderr; 1 for anything else.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mokd_det.model_zoo import find_config_file
from mokd_det.training_arguments import argument_parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    return argument_parser(__doc__ or "").parse_intermixed_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Refuse a configuration file that is not there."""
    find_config_file(options.config_file)
