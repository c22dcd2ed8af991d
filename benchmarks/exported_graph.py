#!/usr/bin/env python
"""What an exported detector costs beside the model itself: file sizes, and seconds in interleaved rounds.

python benchmarks/exported_graph.py --config-file configs/COCO/vidt_nano.py --size 800 1328
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from machine import describe
from tabulate import tabulate

from mokd_det.engine import load_config
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default="configs/COCO/vidt_nano.py", metavar="FILE")
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1328), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each engine (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="that count (%(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="of this process instead of the clock's")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
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
        run = onnx_runner(content, options.threads)
        engines[name] = lambda run=run: run(images, sizes)
        if kernel == "grid_sample":
            content = torchscript_bytes(graph, {})
            sizes_in_mb["TorchScript"] = len(content) / 1e6
            script = torchscript_runner(content)
            engines["TorchScript"] = lambda run=script: run(images, sizes)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    # The first two rounds compile and warm up.
    for index in range(options.rounds + 2):
        for name, run_once in engines.items():
            start = clock()
            with torch.inference_mode():
                run_once()
            if index >= 2:
                seconds[name].append(clock() - start)
    print(*(f"{key}: {value}" for key, value in describe().items()), sep="\n")
    print(f"{options.config_file}, 1 x 3 x {height} x {width}, medians of {options.rounds} rounds")
    print(f"{'CPU seconds' if options.cpu_time else 'seconds'} of an image\n")
    rows = [
        (name, f"{sizes_in_mb[name]:.1f}", *(f"{f(times):.3f}" for f in (statistics.median, min, max)))
        for name, times in seconds.items()
    ]
    print(tabulate(rows, ("", "MB", "seconds", "min", "max"), disable_numparse=True))


if __name__ == "__main__":
    main()
