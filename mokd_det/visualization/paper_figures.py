"""The paper's figures of results: quality over model size (Fig. 1) and over epochs (Figs. 6, C.1, C.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mokd_det.visualization.figure_style import LINE_COLOURS, figure_style, new_figure, plain_axes
from mokd_det.visualization.run_metrics import Series

__all__ = ["epochs_figure", "size_figure"]

_MARKERS = "osD^vP*X"


def size_figure(points: Mapping[str, Sequence[tuple[float, float]]], metric: str, title: str) -> Figure:
    """A method's students as points, joined in the order of their size.

    Args:
        points: method → (millions of parameters, value).
        metric: name of the value.
        title: above the axes.
    """
    with figure_style():
        figure = new_figure(6.0, 4.0)
        axes = figure.subplots()
        plain_axes(axes)
        for number, (method, values) in enumerate(points.items()):
            sizes, found = np.array(sorted(values), dtype=np.float64).T
            colour, marker = LINE_COLOURS[number % len(LINE_COLOURS)], _MARKERS[number % len(_MARKERS)]
            axes.plot(sizes, found, color=colour, marker=marker, markersize=6, linewidth=1.2, label=method)
        axes.set_xlim(left=0)
        axes.set_xlabel("parameters, millions")
        axes.set_ylabel(metric)
        axes.set_title(title)
        axes.legend(loc="best")
        figure.set_layout_engine("constrained")
    return figure


def epochs_figure(curves: Mapping[str, Sequence[Series]], metric: str, title: str) -> Figure:
    """A line per run over epochs; seeds of a method share its colour and one entry of the legend.

    Args:
        curves: method → (epochs, values) of each of its runs.
        metric: name of the value.
        title: above the axes.
    """
    with figure_style():
        figure = new_figure(6.0, 4.0)
        axes = figure.subplots()
        plain_axes(axes)
        for number, (method, runs) in enumerate(curves.items()):
            for index, (epochs, values) in enumerate(runs):
                label = method if index == 0 else None
                colour = LINE_COLOURS[number % len(LINE_COLOURS)]
                axes.plot(
                    epochs,
                    values,
                    color=colour,
                    linewidth=1.4,
                    label=label,
                    marker="." if len(epochs) < 20 else None,
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(metric)
        axes.set_title(title)
        axes.legend(loc="best")
        figure.set_layout_engine("constrained")
    return figure
