#!/usr/bin/env python
"""What an exported detector costs beside the model itself: file sizes, and seconds in interleaved rounds.

python benchmarks/exported_graph.py --config-file configs/COCO/vidt_nano.py --size 800 1328
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness import measure, options_of, parser_of

from mokd_det.config import load_config
from mokd_det.engine.measured_model import build_measured
from mokd_det.export import (
    inference_graph,
    onnx_bytes,
    onnx_runner,
    pad_batch,
    torchscript_bytes,
    torchscript_runner,
)


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    add = parser.add_argument
    add("--config-file", default="configs/COCO/vidt_nano.py", metavar="FILE")
    add("--size", nargs=2, type=int, default=(800, 1328), metavar=("HEIGHT", "WIDTH"))
    options = options_of(parser)
    model = build_measured(load_config(options.config_file, [], training=False)).requires_grad_(False)
    height, width = options.size
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    images, sizes = pad_batch([image])

    sizes_in_mb = {"PyTorch": sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6}
    engines: dict[str, Callable[[], object]] = {"PyTorch": lambda: model([{"image": image}])}
    for kernel in ("grid_sample", "gather"):
        graph = inference_graph(model, kernel)
        content = onnx_bytes(graph, {})
        name = f"ONNX Runtime, {kernel}"
        sizes_in_mb[name] = len(content) / 1e6
        run_onnx = onnx_runner(content, options.threads)
        engines[name] = partial(run_onnx, images, sizes)
        if kernel == "grid_sample":
            content = torchscript_bytes(graph, {})
            sizes_in_mb["TorchScript"] = len(content) / 1e6
            script = torchscript_runner(content)
            engines["TorchScript"] = partial(script, images, sizes)
    with torch.inference_mode():
        measured = measure(engines, options, baseline="PyTorch")
    measured.report(
        "exported_graph",
        settings={"config": options.config_file, "image": f"1 x 3 x {height} x {width}"},
        json_file=options.json,
        columns={"MB of the file": {name: f"{size:.1f}" for name, size in sizes_in_mb.items()}},
        further={"megabytes": sizes_in_mb},
    )


if __name__ == "__main__":
    main()
