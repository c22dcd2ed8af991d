"""Draw the objectives of finished runs on validation images against each other.

The command line: :mod:`mokd_det.tools.parsers.plot_frontier`.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.errors import ConfigError
from mokd_det.experiments.validation_losses import ValidationLosses, validation_losses
from mokd_det.tools import command, writing
from mokd_det.tools.parsers import plot_frontier as reader
from mokd_det.visualization import save_png
from mokd_det.visualization.frontier import FrontierPoint, frontier_figure


def draw(options: argparse.Namespace) -> None:
    """Compute the losses, write picture and numbers and print where they are."""
    labels = options.labels or [Path(run).name for run in options.runs]
    runs: dict[str, ValidationLosses] = {}
    for run, label in zip(options.runs, labels, strict=True):
        if label in runs:
            raise ConfigError(f"two runs are called '{label}'; give each its name by --labels")
        runs[label] = validation_losses(Path(run), options.dataset, options.images)
        print(label, {name: round(value, 4) for name, value in runs[label].values.items()})
    distilled = [losses for losses in runs.values() if losses.method]
    names = {tuple(losses.values) for losses in distilled}
    if len(names) != 1 or len(next(iter(names))) != 2:
        raise ConfigError(
            f"a frontier needs runs of the same two objectives; these have {sorted(names) or 'none'}"
        )
    y, x = next(iter(names))
    panels: dict[str, list[FrontierPoint]] = {}
    for label, losses in runs.items():
        if losses.method:
            weights = losses.weights
            weight = None if weights is None else weights[y] / weights[x] if weights[x] else math.inf
            point = FrontierPoint(label, losses.values[x], losses.values[y], weight)
            panels.setdefault(losses.method, []).append(point)
    alone = [losses.values[x] for losses in runs.values() if not losses.method]
    figure = frontier_figure(
        panels,
        x_name=x,
        y_name=y,
        x_alone=sum(alone) / len(alone) if alone else None,
        title=options.title,
    )
    numbers = options.output.with_suffix(".json")
    with writing(options.output):
        options.output.parent.mkdir(parents=True, exist_ok=True)
        save_png(figure, options.output)
        with atomic_write(numbers, "w") as handle:
            found = {label: asdict(losses) for label, losses in runs.items()}
            json.dump({"dataset": options.dataset, "runs": found}, handle, indent=1)
    print(options.output, numbers)


main = command(reader, draw)
