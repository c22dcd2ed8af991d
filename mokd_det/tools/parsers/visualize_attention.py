"""Draw where models look: the DET tokens of detectors, the class token of classifiers, several models side by side.

    python -m mokd_det attention photo.jpg images/ --model configs/COCO/vidt_nano.py nano.pth --output attention
    python -m mokd_det attention --dataset digits_test --ids 4 18 --output output/attention \\
        --run output/demo/runs/teacher --run output/demo/runs/mokd_seed0 --run output/demo/runs/student_seed0 \\
        --labels teacher MoKD "student alone"

One PNG per image; of classifiers, sheets of up to eight images, or with --view layers one PNG per image.

Detectors, --view objects: for each object where its DET token looks in the backbone's last block, and which points it
reads in the decoder's last layer; --view layers: all blocks of the backbone's last stage, all layers of the decoder.
Classifiers, --view objects: the class token's attention in the final block, and the rollout; --view layers: its
attention in every block.

Exit status: 0; 1 if an image could not be read (the others are drawn); 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.errors import ConfigError
from mokd_det.tools.parsers import command_parser, require_at_least
from mokd_det.tools.parsers.model_arguments import add_model_arguments, model_files


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="IMAGE", help="image file, or folder of images")
    add("--dataset", metavar="NAME", help="data set of --ids (default: that of the first model's evaluation)")
    add("--ids", nargs="+", type=int, metavar="ID", help="image ids (classifiers: positions) in a data set")
    add_model_arguments(parser, several=True)
    add("--output", required=True, type=Path, metavar="DIR", help="folder of the pictures")
    add(
        "--view",
        choices=("objects", "layers"),
        default="objects",
        help="what a picture shows (default: objects)",
    )
    add("--threshold", type=float, default=0.5, metavar="P", help="least score of a DET token (default: 0.5)")
    add("--max-objects", type=int, metavar="N", help="objects per picture (default: 8; with layers: 3)")
    add("--annotations", metavar="FILE.json", help="class names of detectors from a COCO-format file")
    smooth = parser.add_mutually_exclusive_group()
    smooth.add_argument("--smooth", action="store_const", const=True, help="interpolate between cells")
    smooth.add_argument(
        "--cells", action="store_const", const=False, dest="smooth", help="show the cells themselves"
    )
    parser.set_defaults(smooth=None)
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    if not 0 <= options.threshold <= 1:
        raise ConfigError(f"--threshold is {options.threshold}; it must be a score from 0 to 1")
    require_at_least(options, max_objects=1)
    model_files(options, several=True)
    if bool(options.inputs) == bool(options.ids):
        raise ConfigError("give either image files and folders, or --ids of a data set")
    if options.dataset and not options.ids:
        raise ConfigError("--dataset is for --ids; give the ids of the images")
