"""What a model costs: parameters, multiply-adds, latency, images per second, peak memory.

The command line: :mod:`mokd_det.tools.parsers.analyze_model`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import logging
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.config import load_config
from mokd_det.engine.measured_model import build_for_memory, build_measured, example_inputs
from mokd_det.engine.setup import pick_device, processor_name
from mokd_det.evaluation.flop_count import FlopCount, count_flops
from mokd_det.evaluation.latency import Latency, measure_latency
from mokd_det.evaluation.parameter_count import TABLE_1, ParameterCount, count_parameters, size_remark
from mokd_det.evaluation.peak_memory import PeakMemory, cpu_peak_memory, cuda_peak_memory
from mokd_det.model_zoo import CONFIGS
from mokd_det.progress import progress
from mokd_det.tools import command, writing
from mokd_det.tools.parsers import analyze_model as reader
from mokd_det.tools.parsers.analyze_model import MEASURES

PUBLISHED_CLASSES = 91


def run(options: argparse.Namespace) -> None:
    """Print the table, write the files."""
    logging.getLogger("mokd_det").setLevel(logging.WARNING)
    content, text = variants() if options.all_variants else analyse(options)
    print(text)
    if options.output is not None:
        write(content, options.output)


def analyse(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Measure one model.

    Returns:
        All numbers, and a text with the main ones.
    """
    size = (options.size[0], options.size[1])
    cfg = load_config(options.config_file, options.set, training=False)
    device = pick_device(options.device)
    model = build_measured(cfg, teacher=options.teacher).to(device)
    inputs = example_inputs(cfg, model, options.batch_size, size, device)
    memory_of = functools.partial(
        build_for_memory, options.config_file, options.set, options.teacher, options.batch_size, size
    )
    found: dict[str, Any] = {}
    for measure in progress([name for name in MEASURES if name in options.measure], what="measurements"):
        if measure == "parameters":
            found[measure] = count_parameters(model)
        elif measure == "flops":
            found[measure] = count_flops(model, inputs)
        elif measure == "latency":
            found[measure] = measure_latency(
                model,
                inputs,
                batch_size=options.batch_size,
                device=device,
                precision=options.precision,
                warmup=options.warmup,
                repeats=options.repeats,
            )
        elif device.type == "cuda":
            found[measure] = cuda_peak_memory(model, inputs, device, options.precision)
        else:
            found[measure] = cpu_peak_memory(memory_of, options.precision)
    setting = {
        "model": type(model).__name__ + (" (teacher)" if options.teacher else ""),
        "config": str(options.config_file),
        "batch": f"{options.batch_size} x 3 x {size[0]} x {size[1]}",
        "precision": options.precision,
        **machine(device),
    }
    content: dict[str, Any] = {"setting": setting}
    content |= {name: dataclasses.asdict(value) for name, value in found.items()}
    if "latency" in found:
        content["latency"] |= {"median": found["latency"].median, "fps": found["latency"].fps}
    parts = [columns(list(setting.items())), *(table(value, options) for value in found.values())]
    return content, "\n\n".join(parts)


def machine(device: torch.device) -> dict[str, str]:
    """What it was measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def short_number(count: float) -> str:
    """``12.3 G``, ``4.56 M`` or ``789 k``."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:,.4g} {unit}"
    return f"{count / 1e3:,.3g} k"


def columns(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values; long values go on below themselves."""
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(
        textwrap.fill(value, 110, initial_indent=name.ljust(width), subsequent_indent=" " * width)
        for name, value in rows
    )


def table(value: Any, options: argparse.Namespace) -> str:
    """The main figures of a measurement."""
    rows: list[tuple[str, str]]
    if isinstance(value, ParameterCount):
        rows = [
            ("parameters", f"{value.total:,}"),
            ("  of them trained", f"{value.trainable:,}"),
            ("  with buffers", f"{value.megabytes:,.1f} MB"),
        ]
        rows += [(f"  {name or '(own)'}", f"{count:,}") for name, count in value.by_part.items()]
    elif isinstance(value, FlopCount):
        images = options.batch_size
        rows = [("multiply-adds per image", short_number(value.total / images))]
        rows += [(f"  {name}", short_number(count / images)) for name, count in value.by_part.items()]
        rows += [(f"  all {name}", short_number(count / images)) for name, count in value.by_operator.items()]
        left_out = ", ".join(f"{name.removeprefix('aten::')}×{n}" for name, n in value.not_counted.items())
        rows += [
            ("not counted", left_out or "nothing"),
            ("not called", ", ".join(value.not_called) or "none"),
        ]
    elif isinstance(value, Latency):
        rows = [
            (f"latency, median of {len(value.seconds)}", f"{value.median * 1e3:,.2f} ms per batch"),
            ("  10 % to 90 %", f"{value.quantile(0.1) * 1e3:,.2f} to {value.quantile(0.9) * 1e3:,.2f} ms"),
            ("images per second", f"{value.fps:,.2f}"),
        ]
    elif isinstance(value, PeakMemory):
        rows = [("peak memory of a pass", f"{value.megabytes:,.1f} MB"), ("  measured by", value.method)]
    else:
        raise TypeError(f"no table for {type(value).__name__}")
    return columns(rows)


def variants() -> tuple[dict[str, Any], str]:
    """Parameters of ViDT's four variants beside those of the paper's Table 1.

    Raises:
        MoKDError: a config cannot be used.
    """
    rows, content = [], {}
    for published in progress(TABLE_1, what="variants"):
        config = CONFIGS / "COCO" / f"{published.model.lower().replace('-', '_')}.py"
        cfg = load_config(config, [], training=False)
        counts = {cfg.model.num_classes: count_parameters(build_measured(cfg)).total}
        cfg.model.num_classes = PUBLISHED_CLASSES
        counts[PUBLISHED_CLASSES] = count_parameters(build_measured(cfg)).total
        remark = size_remark(counts[PUBLISHED_CLASSES], published)
        content[published.model] = {"parameters": counts, "table_1": published.text, "remark": remark}
        rows.append((published.model, *(f"{count:,}" for count in counts.values()), published.text, remark))
    headers = ("model", *(f"{classes} classes" for classes in counts), "Table 1", "")
    notes = (
        f"Table 1: the #Params column of the paper. Official ViDTs have {PUBLISHED_CLASSES} classes (COCO's category "
        f"ids); our COCO configs\nhave the 80 that exist. Tensors that occur twice are counted once."
    )
    return content, tabulate(rows, headers, tablefmt="simple", disable_numparse=True) + f"\n\n{notes}"


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write the numbers as JSON."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "w") as handle:
            json.dump(content, handle, indent=2, ensure_ascii=False)
            handle.write("\n")


main = command(reader, run)
