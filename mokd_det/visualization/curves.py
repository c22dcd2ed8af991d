"""Curves of several runs in the same axes: evaluation results, weights of the objectives, losses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mokd_det.visualization.chart import Chart, Curve, draw_chart
from mokd_det.visualization.figure_style import (
    INK,
    LINE_COLOURS,
    LINE_STYLES,
    draw_header,
    draw_legend,
    figure_style,
    new_figure,
)
from mokd_det.visualization.run_metrics import RunMetrics
from mokd_det.visualization.run_quantities import Read, losses, scalar, weights

__all__ = ["curves_figure"]

_RESULTS = {"bbox": ("AP", "AP50", "AP75"), "classification": ("top1", "ece")}
"""Task → the evaluation results that are drawn."""

_PANEL_WIDTH, _PANEL_HEIGHT = 2.9, 2.15


def curves_figure(runs: Sequence[RunMetrics], *, title: str = "", results: str = "bbox") -> Figure:
    """The evaluation results, the weights π and every loss over iterations.

    One row for the evaluation results and π, and one per objective: the sum of its losses, then each term
    (summed over the levels of the decoder). Panels of which no run has anything are left out. Runs with equal
    labels (seeds) share a colour.

    Args:
        results: task whose evaluation results are drawn, "bbox" or "classification".

    Raises:
        ValueError: no runs, or none with anything to draw.
    """
    colours = dict(zip(dict.fromkeys(run.label for run in runs), cycle(LINE_COLOURS)))
    rows = [charts for charts in _rows(runs, results, colours) if charts]
    if not rows:
        raise ValueError("none of the runs has logged losses, weights or evaluation results")
    columns = max(len(charts) for charts in rows)
    end = max(int(run.records[-1]["iteration"]) for run in runs)
    with figure_style():
        height = _PANEL_HEIGHT * len(rows) + (0.65 if title else 0.4)
        figure = new_figure(max(_PANEL_WIDTH * columns + 0.2, 4.0), height)
        top = draw_header(figure, title, list(colours.items()))
        body = figure.add_gridspec(len(rows), columns)
        for row, charts in enumerate(rows):
            for column, chart in enumerate(charts):
                axes = figure.add_subplot(body[row, column])
                draw_chart(axes, chart, end=end)
                axes.set_title(chart.title, loc="left")
                axes.set_ylabel(chart.unit)
                # Colours tell the runs apart, styles the objectives.
                styles = {curve.style: curve.label for curve in chart.curves}
                if len(styles) > 1:
                    handles = [Line2D([], [], color=INK, linestyle=style) for style in styles]
                    draw_legend(axes, handles, list(styles.values()), loc="best", handlelength=2.4)
        figure.set_layout_engine(
            "constrained", rect=(0, 0, 1, top), w_pad=0.08, h_pad=0.08, wspace=0.02, hspace=0.03
        )
    return figure


def _rows(runs: Sequence[RunMetrics], results: str, colours: dict[str, str]) -> list[list[Chart]]:
    def curves(read: Read, label: str = "", style: object = "-") -> list[Curve]:
        found = [(run, *read(run)) for run in runs]
        return [Curve(label, colours[run.label], x, y, style=style) for run, x, y in found if len(x)]

    names = {name for run in runs for name in run.names()}
    first = []
    for metric in _RESULTS[results]:
        if f"{results}/{metric}" in names:
            title, lines = f"{metric} on the validation data", curves(scalar(f"{results}/{metric}"))
            first.append(Chart(title, lines, "percent", from_zero=True, marks=10**9))
    weighted = [
        curve
        for (name, read), style in zip(weights(runs).items(), cycle(LINE_STYLES))
        for curve in curves(read, name, style)
    ]
    if weighted:
        first.append(Chart("Weights of the objectives", weighted, "π", limits=(0.0, 1.0)))
    rows = [first]
    for objective, total, terms in losses(runs):
        row = [Chart(f"loss_{term}", curves(read), "loss", from_zero=True) for term, read in terms.items()]
        if objective is not None and len(row) > 1:
            title = f"Objective “{objective}”"
            row.insert(0, Chart(title, curves(total), "sum of its losses", from_zero=True))
        rows.append(row)
    return rows
