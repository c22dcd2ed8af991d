"""Draw how objectives pull at a model, of several runs side by side: losses, weights, conflict, dominance.

The command line: :mod:`mokd_det.tools.parsers.plot_dynamics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mokd_det.errors import ConfigError
from mokd_det.exit_status import exit_status
from mokd_det.tools.parsers.plot_dynamics import parse
from mokd_det.visualization import dynamics_figure, read_run, save_png


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(arguments)
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
    runs = [read_run(path, labels[number] if labels else None) for number, path in enumerate(directories)]
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
