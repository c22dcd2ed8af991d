"""How objectives pull at a model, of several runs side by side: losses, weights, conflict, dominance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, cycle

import numpy as np
from matplotlib.figure import Figure

from mokd_det.visualization.chart import Chart, Curve, draw_chart
from mokd_det.visualization.figure_style import (
    LINE_COLOURS,
    MUTED,
    draw_legend,
    figure_style,
    new_figure,
)
from mokd_det.visualization.run_metrics import RunMetrics, Series
from mokd_det.visualization.run_quantities import ALL, gradient_quantities

__all__ = ["dynamics_figure"]

_PANEL_WIDTH, _PANEL_HEIGHT = 3.6, 1.9


def dynamics_figure(runs: Sequence[RunMetrics], *, title: str = "") -> Figure:
    """One column per run, one row per quantity, with equal scales along a row.

    Rows: the losses of the objectives and their weights π. Then the preprint's figures 3 and C.4, which are of the raw
    gradients ∇L: conflict as the inner product ⟨∇L_a, ∇L_b⟩ (``raw_inner_product/…``) and as its cosine
    (``cosine/…``, that of the logarithms too), dominance ‖∇L_a‖ / ‖∇L_b‖ (``raw_norm_ratio/…``). Then the dominance of
    ∇log L, which balancers of logarithms see (``log_norm_ratio/…``). Cosine and raw dominance have a row for each
    parameter group that is logged. A row that no run has logged is left out; the axes of a run that lacks one say so.
    With ``train.conflict_period=1`` and ``train.log_period=1`` the lines have a point per iteration.

    Raises:
        ValueError: no runs, or none with anything to draw.
    """
    rows = [(chart, lines) for chart, lines in _rows(runs) if any(lines)]
    if not rows:
        raise ValueError("none of the runs has logged losses, weights, conflict or dominance")
    names = [name for _, lines in rows for of_run in lines for name in of_run]
    colours = dict(zip(dict.fromkeys(names), cycle(LINE_COLOURS[1:])))
    with figure_style():
        head = 0.35 if title else 0.05
        height = _PANEL_HEIGHT * len(rows) + 0.3 + head
        figure = new_figure(max(_PANEL_WIDTH * len(runs) + 0.4, 4.5), height)
        if title:
            figure.text(0.012, 1 - 0.08 / height, title, fontsize=12, fontweight="bold", va="top")
        grid = figure.subplots(len(rows), len(runs), squeeze=False, sharex=True, sharey="row")
        end = max(int(run.records[-1]["iteration"]) for run in runs)
        for i, (chart, lines) in enumerate(rows):
            curves = [[Curve(name, colours[name], *one) for name, one in found.items()] for found in lines]
            limits = replace(chart, curves=list(chain.from_iterable(curves))).span()
            for j, run in enumerate(runs):
                axes = grid[i, j]
                drawn = draw_chart(axes, replace(chart, curves=curves[j], limits=limits), end=end)
                if i == 0:
                    axes.set_title(run.label, fontsize=11, fontweight="bold", pad=8)
                axes.set_xlabel("iteration" if i == len(rows) - 1 else "")
                axes.set_ylabel(f"{chart.title}\n{chart.unit}" if j == 0 else "")
                if not drawn:
                    absent = "one objective" if len(run.objectives) == 1 else "not logged"
                    axes.text(
                        0.5, 0.5, absent, transform=axes.transAxes, ha="center", va="center", color=MUTED
                    )
                    continue
                labels = [curve.label for curve in curves[j]]
                if chart.title.startswith("Conflict"):
                    negative = [f": negative in {np.mean(c.y < 0):.0%} of the records" for c in curves[j]]
                    labels = [label + note for label, note in zip(labels, negative)]
                draw_legend(axes, drawn, labels, loc="best", handlelength=1.6, labelspacing=0.3)
        figure.align_ylabels(grid[:, 0])
        figure.set_layout_engine(
            "constrained", rect=(0, 0, 1, 1 - head / height), w_pad=0.07, h_pad=0.06, wspace=0.02, hspace=0.02
        )
    return figure


def _rows(runs: Sequence[RunMetrics]) -> list[tuple[Chart, list[dict[str, Series]]]]:
    """Each row's axes and, run by run, its lines."""
    # The weight of a single objective is always 1 and tells nothing.
    weights = [run.weights() if len(run.weights()) > 1 else {} for run in runs]
    rows = [
        (Chart("Losses", [], "sum per objective", scale="log"), [_losses(run) for run in runs]),
        (Chart("Weights", [], "π", limits=(0.0, 1.03)), weights),
    ]
    quantities = gradient_quantities(runs)
    for title in dict.fromkeys(quantity.row for quantity in quantities):
        of_row = [quantity for quantity in quantities if quantity.row == title]
        first = of_row[0]
        # These say as much of one group as of all.
        if first.title in ("Inner product", "Dominance, logarithms") and first.part not in ("", ALL):
            continue
        read = [{one.of: series for one in of_row if len((series := one.read(run))[0])} for run in runs]
        rows.append((Chart(title, [], first.unit, **first.axis), read))
    return rows


def _losses(run: RunMetrics) -> dict[str, Series]:
    grouped = {name: run.objective(name) for name in run.objectives if run.losses(name)}
    return grouped or {name: run.series(*losses) for name, losses in run.terms().items()}
