"""What detectors lose AP to: TIDE's six error types, false positives and negatives, class against place.

    python -m mokd_det tide RESULT.json --annotations instances_val.json
    python -m mokd_det tide a.json b.json --labels "student alone" MoKD --dataset digits_test --output output/tide
    python -m mokd_det tide --run output/demo/runs/student_seed0 --run output/demo/runs/mokd_seed0 \\
        --dataset digits_test --output output/tide
    python -m mokd_det tide --model configs/quickstart/student.py student_final.pth --thresholds 0.5 0.75

A RESULT is a file in COCO's result format; --run and --model run a detector themselves. Prints the tables; --output
writes tide.md, tide.json, tide.png and the detections of the models it ran. Exit status: 0; 2 for a mistake in the
input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.errors import ConfigError
from mokd_det.tools.parsers import command_parser
from mokd_det.tools.parsers.model_arguments import ModelFiles, add_model_arguments, model_files


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("results", nargs="*", type=Path, metavar="RESULT", help="file in COCO's result format")
    add_model_arguments(parser, several=True)
    add("--annotations", type=Path, metavar="FILE.json", help="the truth of result files, in COCO format")
    add("--dataset", metavar="NAME", help="the truth by its registered name; models: instead of the config's")
    add(
        "--thresholds",
        nargs="+",
        type=float,
        default=[0.5],
        metavar="IOU",
        help="from which a detection is right (0.5)",
    )
    add("--background", type=float, default=0.1, metavar="IOU", help="below it nothing is hit (%(default)s)")
    add(
        "--max-dets",
        type=int,
        metavar="N",
        help="the best N detections of an image count (default: all; tidecv by itself: 100)",
    )
    add(
        "--drop-bad-boxes",
        action="store_true",
        help="--annotations: boxes without area in their image are left out",
    )
    add("--drop-unknown", action="store_true", help="leave out detections of unknown images and categories")
    add("--output", type=Path, metavar="DIR", help="write tables, JSON, picture and detections there")
    options = parser.parse_args(arguments)
    if not options.results and not options.models:
        parser.error("give a RESULT, a --run or a --model")
    return options


def check(options: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other."""
    if options.annotations and options.dataset:
        raise ConfigError("give --annotations or --dataset, not both")
    if options.models and options.annotations:
        raise ConfigError("--annotations is for result files; a model needs images: give --dataset NAME")
    if not options.models and not options.annotations and not options.dataset:
        raise ConfigError("result files need their truth: give --annotations FILE.json or --dataset NAME")
    if options.drop_bad_boxes and not options.annotations:
        raise ConfigError("--drop-bad-boxes is for --annotations; a data set says itself what is dropped")
    models = detectors(options)
    labels([path.stem for path in options.results] + [model.name for model in models], options.labels)


def detectors(options: argparse.Namespace) -> list[ModelFiles]:
    """What --run and --model name."""
    if not options.models:
        return []
    # The labels are of result files too.
    return model_files(argparse.Namespace(models=options.models), several=True)


def labels(names: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """One distinct name per detector.

    Raises:
        ConfigError: names and detectors differ in number, or two are alike.
    """
    if given is not None and len(given) != len(names):
        raise ConfigError(f"--labels gives {len(given)} names for {len(names)} detectors; give one each")
    chosen = list(given or names)
    if len(set(chosen)) != len(chosen):
        raise ConfigError(f"two detectors are called alike ({', '.join(chosen)}); name them with --labels")
    return chosen
