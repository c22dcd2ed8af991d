"""Write a trained student for use elsewhere: as ONNX, as TorchScript, as plain weights.

    python -m mokd_det export --config-file configs/quickstart/student.py \\
        --weights output/demo/runs/student_seed0/student_final.pth output/export/student.onnx
    python -m mokd_det export --config-file FILE --weights FILE student.onnx student.torchscript student.safetensors
    python -m mokd_det export --config-file FILE --weights FILE student.onnx --deformable-attention gather --opset 16

The name's ending chooses the form: .onnx, .torchscript or .safetensors. Of a distillation's configuration the student
is taken; nothing of its teacher is needed. A graph is run on photographs of several sizes and compared with the model
before it is written. Exit status: 0; 2 for a mistake in the input or a model that cannot be exported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mokd_det.errors import ExportError
from mokd_det.model_zoo import find_config_file
from mokd_det.tools.parsers import command_parser

FORMS = (".onnx", ".torchscript", ".safetensors")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("outputs", nargs="+", type=Path, metavar="OUTPUT", help="file to write; replaced if it exists")
    add("--config-file", required=True, metavar="FILE", help="LazyConfig file, or config.yaml of a run")
    add("--weights", required=True, metavar="FILE", help="checkpoint of the model")
    add("--set", nargs="+", default=[], metavar="key=value", help="overrides of the config file")
    add("--opset", type=int, default=17, metavar="N", help="of ONNX, 16 to 20 (%(default)s)")
    add(
        "--deformable-attention",
        choices=("grid_sample", "gather"),
        default="grid_sample",
        help="by ONNX's GridSample (default), or by Gather, for runtimes that fuse GridSample wrongly",
    )
    add("--tolerance", type=float, default=1e-4, metavar="X", help="of the comparison (%(default)s)")
    add("--no-check", action="store_true", help="write without comparing")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    for output in options.outputs:
        if output.suffix not in FORMS:
            raise ExportError(f"OUTPUT '{output}' must end with {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    find_config_file(options.config_file)
