"""Draw how objectives pull at a model, of several runs side by side: losses, weights, conflict, dominance.

The command line: :mod:`mokd_det.tools.parsers.plot_dynamics`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mokd_det.errors import ConfigError
from mokd_det.exit_status import exit_status
from mokd_det.tools.parsers.plot_dynamics import check, parse
from mokd_det.visualization import dynamics_figure, read_run, save_png


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(arguments)
    return exit_status(lambda: draw(options))


def draw(options: argparse.Namespace) -> None:
    """Read the runs, write the picture and print where it is.

    Raises:
        ConfigError: a directory is no run, labels and runs differ in number, or the file cannot be written.
    """
    check(options)
    labels, output = options.labels, options.output
    runs = [read_run(path, labels[number] if labels else None) for number, path in enumerate(options.runs)]
    try:
        figure = dynamics_figure(runs, title=options.title)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        save_png(figure, output)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error}") from error
    print(output)
