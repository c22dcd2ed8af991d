"""Two objectives of finished runs against each other: what fixed weights reach, and what a balancer adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mokd_det.visualization.figure_style import (
    INK,
    LINE_COLOURS,
    MUTED,
    draw_header,
    figure_style,
    new_figure,
    plain_axes,
)

__all__ = ["FrontierPoint", "frontier_figure"]


@dataclass(frozen=True)
class FrontierPoint:
    """One run.

    Attributes:
        label: its name.
        x, y: the two objectives.
        weight: of y's objective over x's, of a run of a sweep of fixed weights; None: no run of the sweep.
    """

    label: str
    x: float
    y: float
    weight: float | None = None


def frontier_figure(
    panels: Mapping[str, Sequence[FrontierPoint]],
    *,
    x_name: str,
    y_name: str,
    x_alone: float | None = None,
    title: str = "",
) -> Figure:
    """One panel per method whose losses compare: the sweep of fixed weights as a line, every other run as a diamond.

    Args:
        panels: method → runs, two or more of the sweep or none.
        x_name: the objective to the right.
        y_name: the objective upwards.
        x_alone: the first objective of a run without the second, drawn as a line.
        title: above everything.
    """
    others = list(dict.fromkeys(p.label for points in panels.values() for p in points if p.weight is None))
    colours = {label: LINE_COLOURS[1 + n % (len(LINE_COLOURS) - 1)] for n, label in enumerate(others)}
    with figure_style():
        figure = new_figure(4.8 * len(panels), 4.2)
        entries = [("fixed weights", LINE_COLOURS[0]), *colours.items()]
        top = draw_header(figure, title, entries)
        for axes, (method, points) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            _draw_panel(axes, points, colours)
            axes.set_title(method, loc="left", fontsize=8)
            axes.set_xlabel(f"{x_name}, validation images")
            axes.set_ylabel(f"{y_name}, validation images")
            if x_alone is not None:
                axes.axvline(x_alone, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
                axes.annotate(
                    " alone",
                    (x_alone, 0.99),
                    xycoords=("data", "axes fraction"),
                    va="top",
                    color=MUTED,
                    fontsize=8,
                )
        figure.set_layout_engine("constrained", rect=(0, 0, 1, top), w_pad=0.1, h_pad=0.08)
    return figure


def _draw_panel(axes: Axes, points: Sequence[FrontierPoint], colours: Mapping[str, str]) -> None:
    sweep = sorted((p for p in points if p.weight is not None), key=lambda p: p.weight or 0.0)
    axes.plot([p.x for p in sweep], [p.y for p in sweep], color=LINE_COLOURS[0], marker="o", linewidth=1.2)
    for p in sweep:
        axes.annotate(f"{p.weight:g}", (p.x, p.y), xytext=(5, 4), textcoords="offset points", color=INK)
    for p in points:
        if p.weight is None:
            axes.plot([p.x], [p.y], marker="D", markersize=7, color=colours[p.label], linestyle="")
    plain_axes(axes)
