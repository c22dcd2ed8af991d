#!/usr/bin/env python
"""Seconds of a detector's forward pass for one image, by variant and size.

    python benchmarks/model_forward.py --rounds 3 --warmup 1 --clock cpu
    python benchmarks/model_forward.py --only vidt_nano --sizes 800x1333

From pixels to boxes in the original image, as in evaluation: eval mode, random weights (what it costs does not depend
on them), the GPU's work included where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from harness import measure, options_of, parser_of, size

from mokd_det.config import load_config
from mokd_det.engine.measured_model import build_measured

CONFIGS = Path(__file__).parents[1] / "configs" / "COCO"
VARIANTS = ("vidt_nano", "vidt_tiny", "vidt_small", "vidt_base")


def main() -> None:
    parser = parser_of(__doc__, rounds=5, warmup=1)
    add = parser.add_argument
    add("--only", nargs="+", choices=VARIANTS, default=VARIANTS)
    add("--sizes", nargs="+", type=size, default=[(256, 256), (800, 1333)], metavar="HEIGHTxWIDTH")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = options_of(parser)
    calls: dict[str, Callable[[], object]] = {}
    parameters: dict[str, str] = {}
    for name in options.only:
        model = build_measured(load_config(str(CONFIGS / f"{name}.py"), [], training=False)).to(
            options.device
        )
        count = sum(parameter.numel() for parameter in model.parameters())
        for height, width in options.sizes:
            image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
            title = f"{name}, {height} x {width}"
            parameters[title] = f"{count / 1e6:.1f}"
            calls[title] = partial(model, [{"image": image}])
    with torch.inference_mode():
        measured = measure(calls, options)
    measured.report(
        "model_forward",
        settings={"device": options.device, "batch": 1},
        json_file=options.json,
        columns={
            "images / s": {name: f"{1 / measured.seconds(name).median:.2f}" for name in calls},
            "million parameters": parameters,
        },
    )


if __name__ == "__main__":
    main()
