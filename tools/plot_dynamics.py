#!/usr/bin/env python
"""Draw how objectives pull at a model, of several runs side by side: losses, weights, conflict, dominance.

    python tools/plot_dynamics.py output/demo/runs/student_seed0 output/demo/runs/mokd_seed0 --output dynamics.png
    python tools/plot_dynamics.py RUN RUN --labels MoKD "fixed weights" --output dynamics.png

A run is an output directory of tools/train_net.py, finished or not. Conflict and dominance appear where the
run's balancer, or a diagnostics hook, has logged them. Exit status: 0; 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mokd_det.errors import ConfigError
from mokd_det.exit_status import exit_status
from mokd_det.visualization import dynamics_figure, read_run, save_png


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output directory of a run")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.png", help="the picture")
    parser.add_argument(
        "--labels", nargs="+", metavar="TEXT", help="one name per run (default: the directories')"
    )
    parser.add_argument("--title", default="", metavar="TEXT", help="written above everything")
    options = parser.parse_args(arguments)
    return exit_status(lambda: draw(options.runs, options.labels, options.title, options.output))


def draw(directories: Sequence[str], labels: Sequence[str] | None, title: str, output: Path) -> None:
    """Read the runs, write the picture and print where it is.

    Raises:
        ConfigError: a directory is no run, labels and runs differ in number, or the file cannot be written.
    """
    if labels is not None and len(labels) != len(directories):
        raise ConfigError(f"--labels gives {len(labels)} names for {len(directories)} runs; give one per run")
    if output.suffix != ".png":
        raise ConfigError(f"--output {output}: the picture is a PNG file; its name must end with .png")
    runs = [read_run(path, label) for path, label in zip(directories, labels or [None] * len(directories))]
    try:
        figure = dynamics_figure(runs, title=title)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        save_png(figure, output)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error}") from error
    print(output)


if __name__ == "__main__":
    sys.exit(main())
