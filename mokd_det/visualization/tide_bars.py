"""What detectors lose AP to, side by side: TIDE's error types, false positives and negatives, class against place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mokd_det.evaluation.tide import ERROR_TYPES, SPECIAL_TYPES, TideReport
from mokd_det.visualization.figure_style import (
    INK,
    LINE_COLOURS,
    MUTED,
    draw_header,
    figure_style,
    new_figure,
    plain_axes,
)

__all__ = ["tide_figure"]

# Greys, because the colours name detectors.
_CLASSIFICATION, _LOCALISATION = "#4d4d4d", "#bdbdbd"
_SPECIAL_LABELS = {"FalsePos": "FP", "FalseNeg": "FN"}


def tide_figure(reports: Sequence[TideReport], *, title: str = "") -> Figure:
    """One row per threshold, with equal scales along the columns.

    Left: AP points lost to each of the six error types, one bar per detector. Middle: to false positives and false
    negatives. Right: how the loss to class and place divides (the paper's Fig. 5).

    Raises:
        ValueError: no reports, or thresholds that differ.
    """
    if not reports or len({tuple(e.threshold for e in report.errors) for report in reports}) != 1:
        raise ValueError("TIDE bars need one or more detectors at the same thresholds")
    rows = len(reports[0].errors)
    colours = [colour for _, colour in zip(reports, cycle(LINE_COLOURS[1:]))]
    with figure_style():
        height = max(2.6, 1.2 + 0.36 * len(reports)) * rows + (0.65 if title else 0.4)
        figure = new_figure(11.0, height)
        top = draw_header(figure, title, [(report.name, c) for report, c in zip(reports, colours)])
        grid = figure.subplots(rows, 3, squeeze=False, width_ratios=(6, 2.1, 4.2))
        main = max(e.dap[name] for report in reports for e in report.errors for name in ERROR_TYPES)
        special = max(e.dap[name] for report in reports for e in report.errors for name in SPECIAL_TYPES)
        split = max(e.dap["Cls"] + e.dap["Loc"] for report in reports for e in report.errors)
        for i, axes in enumerate(grid):
            threshold = reports[0].errors[i].threshold
            _draw_bars(axes[0], reports, i, list(ERROR_TYPES), list(ERROR_TYPES), colours, main)
            axes[0].set_title(f"AP points lost to each error type, IoU ≥ {threshold:g}", loc="left")
            axes[0].set_ylabel("dAP")
            _draw_bars(
                axes[1], reports, i, list(SPECIAL_TYPES), list(_SPECIAL_LABELS.values()), colours, special
            )
            axes[1].set_title("to all FP, all FN", loc="left")
            _draw_split(axes[2], reports, i, split, legend=i == 0)
        figure.set_layout_engine(
            "constrained", rect=(0, 0, 1, top), w_pad=0.1, h_pad=0.08, wspace=0.03, hspace=0.06
        )
    return figure


def _draw_bars(
    axes: Axes,
    reports: Sequence[TideReport],
    row: int,
    names: Sequence[str],
    labels: Sequence[str],
    colours: Sequence[str],
    highest: float,
) -> None:
    plain_axes(axes)
    axes.grid(visible=False, axis="x")
    width = 0.8 / len(reports)
    for j, (report, colour) in enumerate(zip(reports, colours)):
        values = [report.errors[row].dap[name] for name in names]
        x = np.arange(len(names)) + (j - (len(reports) - 1) / 2) * width
        bars = axes.bar(x, values, width * 0.92, color=colour)
        # More would run into each other; the tables have them.
        if len(reports) <= 2:
            axes.bar_label(bars, [f"{value:.1f}" for value in values], fontsize=6.5, color=MUTED, padding=1)
    axes.set_xticks(range(len(names)), labels)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(0, highest * 1.12 or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _draw_split(axes: Axes, reports: Sequence[TideReport], row: int, highest: float, *, legend: bool) -> None:
    plain_axes(axes)
    axes.grid(visible=False, axis="y")
    for y, report in enumerate(reports):
        errors = report.errors[row]
        cls, loc = errors.dap["Cls"], errors.dap["Loc"]
        axes.barh(y, cls, 0.55, color=_CLASSIFICATION, label="classification" if y == 0 else None)
        axes.barh(y, loc, 0.55, left=cls, color=_LOCALISATION, label="localisation" if y == 0 else None)
        share = errors.classification_share
        text = "nothing lost" if share is None else f"{share:.0%} : {1 - share:.0%}"
        place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (cls + loc, y), fontsize=8, color=INK, **place)
    axes.set_yticks(range(len(reports)), [report.name for report in reports])
    axes.tick_params(axis="y", length=0)
    # Room above for the legend, as no bar may lie under it; a single bar is not to fill the axes.
    axes.set_ylim(max(len(reports), 2) - 0.5, -0.5 - (0.75 if legend else 0.0))
    axes.set_xlim(0, highest * 1.3 or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_title("Class against place: dAP of Cls and Loc", loc="left")
    if legend:
        axes.legend(loc="upper left", ncols=2, handlelength=1.0, borderaxespad=0.1)
