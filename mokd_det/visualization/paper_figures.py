"""The paper's figures of results: quality over model size (Fig. 1) and over epochs (Figs. 6, C.1, C.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mokd_det.visualization.chart import Chart, Curve, draw_chart
from mokd_det.visualization.figure_style import LINE_COLOURS, draw_legend, figure_style, new_figure
from mokd_det.visualization.run_metrics import Series

__all__ = ["epochs_figure", "size_figure"]

_MARKERS = "osD^vP*X"


def size_figure(points: Mapping[str, Sequence[tuple[float, float]]], metric: str, title: str) -> Figure:
    """Each method's students, (millions of parameters, value), as points joined in the order of their size."""
    curves = []
    for number, (method, values) in enumerate(points.items()):
        sizes, found = np.array(sorted(values), dtype=np.float64).T
        curves.append(Curve(method, _colour(number), sizes, found, mark=_MARKERS[number % len(_MARKERS)]))
    return _figure(Chart(title, curves, metric, marks=10**9, across="parameters, millions"))


def epochs_figure(curves: Mapping[str, Sequence[Series]], metric: str, title: str) -> Figure:
    """A line per run, (epochs, values); seeds of a method share its colour and one entry of the legend."""
    lines = [
        Curve(method, _colour(number), *series, mark=".")
        for number, (method, runs) in enumerate(curves.items())
        for series in runs
    ]
    return _figure(Chart(title, lines, metric, marks=19, across="epoch"))


def _figure(chart: Chart) -> Figure:
    with figure_style():
        figure = new_figure(6.0, 4.0)
        axes = figure.subplots()
        lines = draw_chart(axes, chart)
        named = {curve.label: line for curve, line in reversed(list(zip(chart.curves, lines)))}
        labels = list(dict.fromkeys(curve.label for curve in chart.curves))
        draw_legend(axes, [named[label] for label in labels], labels, loc="best")
        axes.set_ylabel(chart.unit)
        axes.set_title(chart.title)
        figure.set_layout_engine("constrained")
    return figure


def _colour(number: int) -> str:
    return LINE_COLOURS[number % len(LINE_COLOURS)]
