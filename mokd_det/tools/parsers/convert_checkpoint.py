"""Convert a checkpoint between this package's layout, the published ones, and safetensors.

    python -m mokd_det convert vidt_tiny_150.pth vidt_tiny.pth
    python -m mokd_det convert vidt_tiny_150.pth vidt_tiny_91.pth --keep-rows all
    python -m mokd_det convert output/model_final.pth student.safetensors --to safetensors
    python -m mokd_det convert output/model_final.pth for_vidt.pth --to official

Training and evaluation read published files directly (train.init_checkpoint=FILE).

Exit status: 0; 2 for a file that cannot be converted, with one line on stderr.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from mokd_det.errors import CheckpointError
from mokd_det.tools.parsers import command_parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, examples, rest = __doc__.split("\n\n", 2)
    parser = command_parser(summary, epilog=f"examples:\n{examples}\n\n{rest}", allow_abbrev=True)
    add = parser.add_argument
    add("input", help="checkpoint of ViDT, ViDT+, Swin (Microsoft, timm) or of a training with this package")
    add("output", help="file to write; it is replaced if it exists")
    add(
        "--to",
        choices=("student", "official", "safetensors"),
        default="student",
        help="student (default): {'model': weights} in this package's names; official: in the names of the "
        "published ViDT (or Microsoft's Swin); safetensors: like student, in that format",
    )
    add(
        "--keep-rows",
        choices=("coco80", "all"),
        default="coco80",
        help="coco80 (default): published class heads of 91 rows become COCO's 80 classes, and back with "
        "--to official; all: class heads keep their rows",
    )
    add("--half", action="store_true", help="write the floating-point weights as float16, half as large")
    add(
        "--trust-pickle",
        action="store_true",
        help="let the input run code while it is read, as old files with Python objects in them need; only for files "
        "whose origin is beyond doubt. The output holds no objects",
    )
    return parser.parse_args(arguments)


def check(args: argparse.Namespace) -> None:
    if (
        os.path.exists(args.output)
        and os.path.exists(args.input)
        and os.path.samefile(args.input, args.output)
    ):
        raise CheckpointError(f"'{args.output}' is the input; give the output another name")
    if args.output.endswith(".safetensors") != (args.to == "safetensors"):
        wanted = "must end" if args.to == "safetensors" else "must not end"
        raise CheckpointError(f"the name '{args.output}' {wanted} with .safetensors for --to {args.to}")
