"""Find objects in images, folders, videos or a camera's pictures: drawn, and as JSON.

    python -m mokd_det demo datasets/digits/test --run output/demo/runs/mokd_seed0 --output output/found
    python -m mokd_det demo photo.jpg clip.mp4 --model configs/COCO/vidt_nano.py vidt_nano.pth --output found
    python -m mokd_det demo --camera 0 --model configs/COCO/vidt_nano.py vidt_nano.pth --output found

Writes <name>.png for every image, <name>.mp4 for every video, detections.json in COCO's result format, and images.json,
which tells what its image ids and category ids stand for. A camera runs until Ctrl-C or --max-frames.

Exit status: 0; 1 if something could not be read (it is named, also in images.json; the rest is done); 2 for a mistake
in the input.
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
    add("inputs", nargs="*", metavar="INPUT", help="image, video, or folder of these")
    add("--camera", metavar="C", help="number of a camera, or a device or stream that OpenCV opens")
    add_model_arguments(parser, several=False)
    add("--output", required=True, type=Path, metavar="DIR", help="folder of the results")
    add("--threshold", type=float, default=0.5, metavar="P", help="least score (default: 0.5; 0: everything)")
    add(
        "--annotations",
        metavar="FILE.json",
        help="COCO-format file with the class names (default: of the data set that the configuration evaluates on) and "
        "with ids of images",
    )
    add("--max-frames", type=int, metavar="N", help="stop a video or camera after N frames")
    add(
        "--video",
        choices=("mp4", "webm", "avi"),
        default="mp4",
        help="kind of the written videos (default: mp4)",
    )
    add(
        "--scale",
        type=int,
        metavar="N",
        help="enlarge what is drawn N times (default: small images, to 480 pixels)",
    )
    add("--no-drawing", action="store_true", help="write the JSON files only")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    require_at_least(options, max_frames=1, scale=1)
    if not 0 <= options.threshold <= 1:
        raise ConfigError(f"--threshold is {options.threshold}; it must be a score from 0 to 1")
    if bool(options.inputs) == (options.camera is not None):
        raise ConfigError("give either files and folders, or --camera")
    model_files(options, several=False)
