"""Curves of several runs in the same axes: evaluation results, weights of the objectives, losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mokd_det.visualization.figure_style import (
    INK,
    LINE_COLOURS,
    LINE_STYLES,
    draw_header,
    draw_legend,
    figure_style,
    new_figure,
    plain_axes,
)
from mokd_det.visualization.run_metrics import RunMetrics, Series

__all__ = ["curves_figure"]

_RESULTS = {"bbox": ("AP", "AP50", "AP75"), "classification": ("top1", "ece")}
"""Task → the evaluation results that are drawn."""

_PANEL_WIDTH, _PANEL_HEIGHT = 2.9, 2.15


@dataclass(frozen=True)
class _Panel:
    """Axes with one line per run and entry of ``lines``: colours tell the runs apart, styles the entries."""

    title: str
    unit: str
    lines: Sequence[tuple[str, Callable[[RunMetrics], Series]]]
    top: float | None = None
    markers: bool = False


def curves_figure(runs: Sequence[RunMetrics], *, title: str = "", results: str = "bbox") -> Figure:
    """The evaluation results, the weights π and every loss over iterations.

    One row for the evaluation results and π, and one per objective: the sum of its losses, then each term
    (summed over the levels of the decoder). Panels of which no run has anything are left out. Runs with equal
    labels (seeds) share a colour.

    Args:
        runs: from :func:`~mokd_det.visualization.run_metrics.read_run`.
        title: above everything.
        results: task whose evaluation results are drawn, "bbox" or "classification".

    Raises:
        ValueError: no runs, or none with anything to draw.
    """
    rows = [panels for panels in _rows(runs, results) if panels]
    if not rows:
        raise ValueError("none of the runs has logged losses, weights or evaluation results")
    columns = max(len(panels) for panels in rows)
    colours = dict(zip(dict.fromkeys(run.label for run in runs), cycle(LINE_COLOURS)))
    with figure_style():
        height = _PANEL_HEIGHT * len(rows) + (0.65 if title else 0.4)
        figure = new_figure(max(_PANEL_WIDTH * columns + 0.2, 4.0), height)
        top = draw_header(figure, title, list(colours.items()))
        body = figure.add_gridspec(len(rows), columns)
        for row, panels in enumerate(rows):
            for column, panel in enumerate(panels):
                axes = figure.add_subplot(body[row, column])
                _draw(axes, panel, runs, colours)
        figure.set_layout_engine(
            "constrained", rect=(0, 0, 1, top), w_pad=0.08, h_pad=0.08, wspace=0.02, hspace=0.03
        )
    return figure


def _rows(runs: Sequence[RunMetrics], results: str) -> list[list[_Panel]]:
    names = dict.fromkeys(name for run in runs for name in run.names())
    first = [
        _Panel(
            f"{metric} on the validation data",
            "percent",
            [("", _series(f"{results}/{metric}"))],
            markers=True,
        )
        for metric in _RESULTS[results]
        if f"{results}/{metric}" in names
    ]
    weighted = [name.removeprefix("pi/") for name in names if name.startswith("pi/")]
    # With a single objective the weight is always 1 and tells nothing.
    if len(weighted) > 1:
        lines = [(objective, _series(f"pi/{objective}", several=True)) for objective in weighted]
        first.append(_Panel("Weights of the objectives", "π", lines, top=1.0))
    rows = [first]
    objectives = list(dict.fromkeys(name for run in runs for name in run.objectives))
    # The objective that most runs have comes first: the task, which a student alone and a teacher share.
    objectives.sort(key=lambda name: -sum(name in run.objectives for run in runs))
    if not objectives:
        rows.append(_term_panels(runs, None))
    for objective in objectives:
        total = _Panel(
            f"Objective “{objective}”",
            "sum of its losses",
            [("", _objective(objective))],
        )
        terms = _term_panels(runs, objective)
        if terms:
            rows.append([total, *terms] if len(terms) > 1 else terms)
    return rows


def _term_panels(runs: Sequence[RunMetrics], objective: str | None) -> list[_Panel]:
    terms = dict.fromkeys(term for run in runs for term in run.terms(objective))
    return [_Panel(f"loss_{term}", "loss", [("", _term(term, objective))]) for term in terms]


def _series(name: str, *, several: bool = False) -> Callable[[RunMetrics], Series]:
    def read(run: RunMetrics) -> Series:
        # A run with one objective logs the weight 1, which would only cover the axes' upper edge.
        shown = not several or len(run.weights()) > 1
        return run.series(name) if shown else run.series("")

    return read


def _objective(objective: str) -> Callable[[RunMetrics], Series]:
    return lambda run: run.objective(objective)


def _term(term: str, objective: str | None) -> Callable[[RunMetrics], Series]:
    return lambda run: run.series(*run.terms(objective).get(term, [""]))


def _draw(axes: Axes, panel: _Panel, runs: Sequence[RunMetrics], colours: dict[str, str]) -> None:
    highest = 0.0
    for (_, read), style in zip(panel.lines, cycle(LINE_STYLES)):
        for run in runs:
            iterations, values = read(run)
            if len(iterations) == 0:
                continue
            marker = "o" if panel.markers or len(iterations) == 1 else ""
            (line,) = axes.plot(
                iterations,
                values,
                color=colours[run.label],
                linestyle=style,
                marker=marker,
                linewidth=1.5,
                markersize=3.5,
            )
            # Otherwise the axes would cut a marker at 0 or at the last iteration in half.
            line.set_clip_on(not marker)
            highest = max(highest, float(values[values == values].max(initial=0.0)))
    plain_axes(axes)
    axes.set_title(panel.title, loc="left")
    axes.set_ylabel(panel.unit)
    axes.set_xlabel("iteration")
    axes.set_xlim(0, max(int(run.records[-1]["iteration"]) for run in runs) * 1.02)
    axes.set_ylim(0, panel.top or (highest * 1.06 or 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if len(panel.lines) > 1:
        handles = [
            Line2D([], [], color=INK, linestyle=style) for _, style in zip(panel.lines, cycle(LINE_STYLES))
        ]
        draw_legend(axes, handles, [name for name, _ in panel.lines], loc="best", handlelength=2.4)
