"""Draw how objectives pull at a model, of several runs side by side: losses, weights, conflict, dominance.

The command line: :mod:`mokd_det.tools.parsers.plot_dynamics`.
"""

from __future__ import annotations

import argparse

from mokd_det.errors import ConfigError
from mokd_det.tools import command, writing
from mokd_det.tools.parsers import plot_dynamics as reader
from mokd_det.visualization import dynamics_figure, read_run, save_png


def draw(options: argparse.Namespace) -> None:
    """Read the runs, write the picture and print where it is."""
    labels, output = options.labels, options.output
    runs = [read_run(path, labels[number] if labels else None) for number, path in enumerate(options.runs)]
    try:
        figure = dynamics_figure(runs, title=options.title)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        save_png(figure, output)
    print(output)


main = command(reader, draw)
