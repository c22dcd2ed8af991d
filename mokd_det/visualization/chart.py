"""Curves as data, and the one way to draw them: in the PNG figures and in the HTML pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, SymmetricalLogLocator

from mokd_det.visualization.figure_style import MUTED, plain_axes

__all__ = ["Chart", "Curve", "draw_chart"]

MARK_SIZE = 3.5


@dataclass(frozen=True)
class Curve:
    """One line: whose it is, and Matplotlib's colour, line style and marker.

    Attributes:
        x: (N,) ascending.
        y: (N,); the line has a gap where it is not finite.
        low, high: (N,) edges of a band around it; None: no band.
    """

    label: str
    colour: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    style: Any = "-"
    mark: str = "o"


@dataclass(frozen=True)
class Chart:
    """Curves in the same axes.

    Attributes:
        unit: of the vertical axis.
        limits: of the vertical axis; None: :meth:`span`.
        scale: of the vertical axis; values without a logarithm are left out of "log".
        from_zero: a linear axis begins at 0.
        reference: a dashed horizontal line.
        marks: curves of at most this many points have a mark on each.
        across: what the horizontal axis is.
    """

    title: str
    curves: Sequence[Curve]
    unit: str = ""
    limits: tuple[float, float] | None = None
    scale: Literal["linear", "log", "symlog"] = "linear"
    from_zero: bool = False
    reference: float | None = None
    marks: int = 1
    across: str = "iteration"

    def span(self) -> tuple[float, float]:
        """The vertical limits: the given ones, or those of bands, curves and reference with some room around them."""
        if self.limits is not None:
            return self.limits
        parts = [part for c in self.curves for part in (c.y, c.low, c.high) if part is not None]
        if self.reference is not None:
            parts.append(np.array([self.reference]))
        values = np.concatenate([np.zeros(0), *parts])
        values = values[np.isfinite(values) & ((values > 0) | (self.scale != "log"))]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        if self.scale == "log":
            return (low / 1.3, high * 1.3) if len(values) else (0.1, 1.0)
        if self.scale == "symlog":
            largest = 1.5 * max(abs(low), abs(high)) or 1.0
            return -largest, largest
        if self.from_zero:
            return 0.0, high * 1.06 if high > 0 else 1.0
        margin = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
        return low - margin, high + margin


def draw_chart(axes: Axes, chart: Chart, *, end: float | None = None) -> list[Line2D]:
    """Draw bands, curves and the reference into empty axes; the title and a legend are the caller's.

    Args:
        end: of the horizontal axis; None: that of the longest curve.

    Returns:
        The line of each curve.
    """
    plain_axes(axes)
    low, high = chart.span()
    locator = MaxNLocator(6, steps=[1, 2, 5, 10])
    if chart.scale == "log":
        axes.set_yscale("log", nonpositive="mask")
        if high / low >= 10:
            # Whole powers where they are several.
            locator = LogLocator(subs=(1.0,) if high / low >= 1000 else (1.0, 2.0, 5.0))
    elif chart.scale == "symlog":
        # Linear within a thousandth of the largest value: its sign is the message.
        axes.set_yscale("symlog", linthresh=high / 1e3)
        locator = SymmetricalLogLocator(base=10, linthresh=high / 10)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_number))
    axes.xaxis.set_major_formatter(FuncFormatter(_number))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylim(low, high)
    ends = [curve.x[[0, -1]] for curve in chart.curves if len(curve.x)]
    begin = min((float(x[0]) for x in ends), default=0.0)
    end = end or max((float(x[1]) for x in ends), default=0.0) or 1.0
    begin = begin if 0.5 * end <= begin < end else 0.0
    axes.set_xlim(begin, end + 0.02 * (end - begin))
    axes.set_xlabel(chart.across)
    if chart.reference is not None and chart.curves:
        axes.axhline(chart.reference, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    lines = []
    for curve in chart.curves:
        if curve.low is not None and curve.high is not None and len(curve.x) > 1:
            band = {"color": curve.colour, "alpha": 0.16, "linewidth": 0, "clip_on": False}
            axes.fill_between(curve.x, curve.low, curve.high, **band)
        marked = len(curve.x) <= chart.marks
        style = {"color": curve.colour, "linestyle": curve.style, "linewidth": 1.5, "markersize": MARK_SIZE}
        lines += axes.plot(curve.x, curve.y, marker=curve.mark if marked else "", **style)
        # Otherwise the axes would cut a mark at 0 or at the last iteration in half.
        lines[-1].set_clip_on(not marked)
    return lines


def _number(value: float, _: int) -> str:
    """A tick's number in few characters."""
    if abs(value) >= 10000:
        shown = f"{value / 1000:.6g}k" if abs(value) < 1e7 else f"{value:.0e}"
    else:
        shown = f"{value:.6g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"
    return shown.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−")
