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
    """The two objectives of one run, and the weight of y's over x's if it is of a sweep of fixed weights, else None."""

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
        x_name, y_name: the objectives.
        x_alone: the first objective of a run without the second, drawn as a line.
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
                place = {"xycoords": ("data", "axes fraction"), "va": "top"}
                axes.annotate(" alone", (x_alone, 0.99), color=MUTED, fontsize=8, **place)
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
