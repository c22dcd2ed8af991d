#!/usr/bin/env python
"""Convert a checkpoint between this package's layout, the published ones, and safetensors.

    python tools/convert_checkpoint.py vidt_tiny_150.pth vidt_tiny.pth
    python tools/convert_checkpoint.py vidt_tiny_150.pth vidt_tiny_91.pth --keep-rows all
    python tools/convert_checkpoint.py output/model_final.pth student.safetensors --to safetensors
    python tools/convert_checkpoint.py output/model_final.pth for_vidt.pth --to official

Training and evaluation read published files directly (train.init_checkpoint=FILE).

Exit status: 0; 2 for a file that cannot be converted, with one line on stderr.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from mokd_det.checkpoint import KEEP_ROWS, identify, load_file, official_weights, student_weights, write_file
from mokd_det.errors import CheckpointError
from mokd_det.exit_status import exit_status


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, examples, rest = __doc__.split("\n\n", 2)
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=f"examples:\n{examples}\n\n{rest}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "input", help="checkpoint of ViDT, ViDT+, Swin (Microsoft, timm) or of a training with this package"
    )
    parser.add_argument("output", help="file to write; it is replaced if it exists")
    parser.add_argument(
        "--to",
        choices=("student", "official", "safetensors"),
        default="student",
        help="student (default): {'model': weights} in this package's names; official: in the names of the "
        "published ViDT (or Microsoft's Swin); safetensors: like student, in that format",
    )
    parser.add_argument(
        "--keep-rows",
        choices=KEEP_ROWS,
        default="coco80",
        help="coco80 (default): published class heads of 91 rows become COCO's 80 classes, and back with "
        "--to official; all: class heads keep their rows",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="let the input run code while it is read, as old files with Python objects in them need; only for files "
        "whose origin is beyond doubt. The output holds no objects",
    )
    return parser.parse_args(arguments)


def convert(args: argparse.Namespace) -> None:
    if (
        os.path.exists(args.output)
        and os.path.exists(args.input)
        and os.path.samefile(args.input, args.output)
    ):
        raise CheckpointError(f"'{args.output}' is the input; give the output another name")
    if args.output.endswith(".safetensors") != (args.to == "safetensors"):
        wanted = "must end" if args.to == "safetensors" else "must not end"
        raise CheckpointError(f"the name '{args.output}' {wanted} with .safetensors for --to {args.to}")
    source = f"checkpoint '{args.input}'"
    content = load_file(args.input, trusted=args.trust_pickle)
    build = official_weights if args.to == "official" else student_weights
    weights = build(content, source, keep_rows=args.keep_rows)
    write_file(weights, args.output)
    print(f"{args.input}: {identify(content)}, {len(content['model'])} tensors")
    print(f"{args.output}: {identify(weights)}, {len(weights)} tensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse_arguments(arguments)
    return exit_status(lambda: convert(options))


if __name__ == "__main__":
    sys.exit(main())
