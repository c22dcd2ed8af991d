"""Methods side by side: the metric over iterations with the spread of the replicates, and the final values with
intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mokd_det.evaluation.method_comparison import MethodRuns
from mokd_det.evaluation.replicate_statistics import estimate
from mokd_det.visualization.chart import Chart, Curve, draw_chart
from mokd_det.visualization.figure_style import (
    LINE_COLOURS,
    MUTED,
    draw_header,
    figure_style,
    new_figure,
    plain_axes,
)

__all__ = ["comparison_figure"]

_WIDTH = 9.6


def comparison_figure(
    students: Mapping[str, Sequence[MethodRuns]],
    *,
    metric: str = "AP",
    references: Mapping[str, float],
    baseline: str,
    final_on: str = "the test data",
    title: str = "",
) -> Figure:
    """One row per student. Left: mean over replicates of the metric on the validation data, the band from the worst
    to the best replicate. Right: each replicate's final value as a dot, their mean and its 95 % t interval.

    Args:
        students: name → methods, the same ones for each.
        metric: what the values are, in percent.
        references: student → the value that the methods' speed is measured by.
        baseline: name of the method whose final mean is drawn through the right axes.
        final_on: the data of the final values, for the title.
    """
    labels = list(dict.fromkeys(method.label for methods in students.values() for method in methods))
    colours = dict(zip(labels, cycle(LINE_COLOURS)))
    with figure_style():
        height = max(2.9, 0.9 + 0.33 * len(labels)) * len(students) + (0.65 if title else 0.35)
        figure = new_figure(_WIDTH, height)
        top = draw_header(figure, title, list(colours.items()))
        grid = figure.subplots(len(students), 2, squeeze=False, width_ratios=(1.05, 1.0))
        for (left, right), (student, methods) in zip(grid, students.items()):
            prefix = f"{student}: " if len(students) > 1 else ""
            _draw_curves(left, methods, colours, references[student])
            left.set_title(f"{prefix}{metric} on the validation data", loc="left")
            left.set_ylabel("percent")
            _draw_finals(right, methods, colours, baseline)
            right.set_title(f"{prefix}final {metric} on {final_on}", loc="left")
            right.set_xlabel("percent")
        figure.set_layout_engine(
            "constrained", rect=(0, 0, 1, top), w_pad=0.1, h_pad=0.08, wspace=0.03, hspace=0.04
        )
    return figure


def _draw_curves(
    axes: Axes, methods: Sequence[MethodRuns], colours: Mapping[str, str], reference: float
) -> None:
    curves = []
    for method in methods:
        runs = list(method.runs.values())
        # Runs of equal length are evaluated at equal iterations; another machine's records may be denser.
        common = sorted(set.intersection(*(set(run.iterations) for run in runs)))
        values = np.array([[run.curve[list(run.iterations).index(i)] for i in common] for run in runs])
        spread = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
        curves.append(Curve(method.label, colours[method.label], np.asarray(common), *spread))
    draw_chart(axes, Chart("", curves, from_zero=True, reference=reference, marks=10**9))
    place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
    axes.annotate(f"reference {reference:.1f}", (0.01, reference), color=MUTED, fontsize=8, **place)


def _draw_finals(
    axes: Axes, methods: Sequence[MethodRuns], colours: Mapping[str, str], baseline: str
) -> None:
    for row, method in enumerate(methods):
        values = list(method.finals().values())
        mean = estimate(values)
        colour = colours[method.label]
        if mean.half_width is not None:
            width = {"capsize": 4, "linewidth": 1.6, "capthick": 1.6}
            axes.errorbar(mean.mean, row, xerr=mean.half_width, color=colour, **width)
        axes.plot([mean.mean], [row], marker="D", color=colour, markersize=6.5, linestyle="")
        # Above the interval, so that neither hides the other.
        dot = {"marker": "o", "alpha": 0.75, "markersize": 4.5, "markeredgewidth": 0, "linestyle": ""}
        axes.plot(values, [row - 0.24] * len(values), color=colour, **dot)
        if method.name == baseline:
            axes.axvline(mean.mean, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    plain_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(methods)), [method.label for method in methods])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(methods) - 0.5, -0.6)
    # Matplotlib would magnify rounding errors of equal values.
    low, high = axes.get_xlim()
    widen = max(0.0, 1.0 - (high - low)) / 2 + 0.02 * (high - low)
    axes.set_xlim(low - widen, high + widen)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
