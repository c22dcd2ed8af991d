"""The paper's tables and figures from finished runs: tables 1 to 4 and C.1, figures 1, 6, C.1 and C.2.

The command line: :mod:`mokd_det.tools.parsers.paper`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from detectron2.config import instantiate
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.engine.measured_model import example_inputs
from mokd_det.errors import ConfigError
from mokd_det.evaluation.latency import measure_latency
from mokd_det.report.paper_tables import (
    DETECTION_METHODS,
    IMAGENET_METHODS,
    NOT_MADE,
    Cell,
    PaperRuns,
    paper_tables,
    table_markdown,
)
from mokd_det.report.run_record import RunRecord, read_record
from mokd_det.tools import command
from mokd_det.tools.parsers import paper as reader
from mokd_det.visualization import save_png
from mokd_det.visualization.paper_figures import epochs_figure, size_figure
from mokd_det.visualization.run_metrics import Series

SIZE = (800, 1333)
"""Height and width in pixels of the image that FPS is measured on."""


def _make(options: argparse.Namespace) -> None:
    runs = PaperRuns(
        [read_record(directory) for directory in _directories(options.runs)],
        _frames_per_second if options.fps else None,
    )
    parts = [table_markdown(table, runs) for table in paper_tables()]
    pictures = dict(_figures(runs))
    said = ["## Left out", "", *(f"- {line}" for line in NOT_MADE)]
    said += [
        f"- {run.directory}: not finished (no student_final.pth, or no config.yaml)."
        for run in runs.unfinished
    ]
    without = "no config of the tables has these networks, method and balancer"
    said += [f"- {run.directory}: {without}." for run in runs.unknown()]
    if not options.fps:
        said.append("- FPS: --fps measures it on this machine.")
    text = "\n".join([*parts, *said]) + "\n"
    print(text, end="")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        with atomic_write(options.output / "paper.md") as file:
            file.write(text.encode("utf-8"))
        for name, figure in pictures.items():
            save_png(figure, options.output / f"{name}.png")
            print(f"wrote {options.output / name}.png")


def _directories(given: Sequence[Path]) -> list[Path]:
    """Every run directory in what was given, in order."""
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            raise ConfigError(f"{path} is no folder: give run directories, or a folder of them")
        inside = sorted(file.parent for file in path.rglob("metrics.json"))
        if not inside:
            raise ConfigError(
                f"{path} is no run's output directory and holds none: there is no metrics.json in it"
            )
        found += inside
    return list(dict.fromkeys(found))


def _figures(runs: PaperRuns) -> Iterator[tuple[str, Figure]]:
    """Name and figure of everything that there are points for."""
    detection = {"": "alone", **{f"{key}_": label for key, label in DETECTION_METHODS.items()}}
    sets = (
        ("figure1b", "AP", "COCO, teacher ViDT-base", "COCO/{}vidt_{}", detection, ("nano", "tiny", "small")),
        ("figure1a", "top1", "ImageNet-1k", "ImageNet/{}deit_{}", IMAGENET_METHODS, ("tiny", "small")),
    )
    for name, metric, title, pattern, methods, sizes in sets:
        points: dict[str, list[tuple[float, float]]] = {}
        for prefix, label in methods.items():
            for size in sizes:
                config = pattern.format(prefix, size)
                values, count = (runs.values(Cell(config, what)) for what in (metric, "#Params"))
                if values:
                    points.setdefault(label, []).append((count[0] / 1e6, sum(values) / len(values)))
        if points:
            yield name, size_figure(points, metric, title)
        number = "c1" if metric == "AP" else "6_c2"
        for size in sizes:
            curves: dict[str, list[Series]] = {}
            for prefix, label in methods.items():
                found = [_over_epochs(run, metric) for run in runs.of(pattern.format(prefix, size))]
                if found := [series for series in found if len(series[0])]:
                    curves[label] = found
            if curves:
                yield f"figure_{number}_{size}", epochs_figure(curves, metric, f"{title}, {size}")


def _over_epochs(run: RunRecord, metric: str) -> Series:
    """A metric over epochs: the shipped configs evaluate once per epoch (``train.eval_period``)."""
    name = f"{'bbox' if metric == 'AP' else 'classification'}/{metric}"
    iterations, values = run.metrics.series(name)
    period = OmegaConf.select(OmegaConf.create(dict(run.config)), "train.eval_period")
    if not isinstance(period, int) or period < 1:
        raise ConfigError(f"{run.directory}: train.eval_period={period!r} does not tell how long an epoch is")
    # The last evaluation is logged by how many iterations there were, the others by the one before.
    return -(-iterations // period), values


def _frames_per_second(section: DictConfig) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = instantiate(section).to(device).eval()
    inputs = example_inputs(OmegaConf.create({}), model, 1, SIZE, device)
    return measure_latency(model, inputs, batch_size=1, device=device).fps


main = command(reader, _make)
