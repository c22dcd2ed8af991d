"""Convert a checkpoint between this package's layout, the published ones, and safetensors.

The command line: :mod:`mokd_det.tools.parsers.convert_checkpoint`.
"""

from __future__ import annotations

import argparse

from mokd_det.checkpoint import identify, load_file, official_weights, student_weights, write_file
from mokd_det.tools import command
from mokd_det.tools.parsers import convert_checkpoint as reader


def convert(args: argparse.Namespace) -> None:
    source = f"checkpoint '{args.input}'"
    content = load_file(args.input, trusted=args.trust_pickle)
    build = official_weights if args.to == "official" else student_weights
    weights = build(content, source, keep_rows=args.keep_rows)
    if args.half:
        weights = {
            key: value.half() if value.is_floating_point() else value for key, value in weights.items()
        }
    write_file(weights, args.output)
    print(f"{args.input}: {identify(content)}, {len(content['model'])} tensors")
    print(f"{args.output}: {identify(weights)}, {len(weights)} tensors")


main = command(reader, convert)
