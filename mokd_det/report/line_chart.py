"""Curves as SVG that takes its colours from the page: sharp at every size, readable in light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mokd_det.report.markup import Markup, element

__all__ = ["Line", "line_chart", "nice_ticks"]

_WIDTH, _HEIGHT = 400.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 14.0, 10.0, 34.0
_DASHES = (None, "6 4", "2 3", "8 3 2 3")
_MAX_POINTS = 400
_MAX_MARKERS = 60


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: said when the pointer rests on it.
        colour: number of the page's colour.
        x: (N,) ascending.
        y: (N,); the line has a gap where it is not finite.
        low: (N,) lower edge of a band around it; None: no band.
        high: (N,) upper edge.
        style: number of the dash pattern.
    """

    label: str
    colour: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    style: int = 0


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between ``low`` and ``high``, about ``count`` of them, in steps of 1, 2 or 5 · 10^n."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    limits: tuple[float, float] | None = None,
    from_zero: bool = False,
    logarithmic: bool = False,
    reference: float | None = None,
    note: str = "",
) -> Markup:
    """A figure with a heading and the curves.

    Args:
        title: what is drawn.
        lines: one or more.
        unit: behind the title.
        limits: of the vertical axis; None: those of the values.
        from_zero: the vertical axis begins at 0.
        logarithmic: it is logarithmic; values that are not positive are left out.
        reference: a dashed horizontal line.
        note: below the chart.
    """
    lines = [_thinned(line) for line in lines]
    scale = math.log10 if logarithmic else float
    values = np.concatenate(
        [np.zeros(0), *(part for line in lines for part in (line.y, line.low, line.high) if part is not None)]
    )
    values = values[np.isfinite(values)]
    if logarithmic:
        values = values[values > 0]
    low, high = limits or _limits(values, from_zero, logarithmic, reference)
    end = max([float(line.x[-1]) for line in lines if len(line.x)], default=1.0)
    begin = min([float(line.x[0]) for line in lines if len(line.x)], default=0.0)
    begin = 0.0 if begin < 0.5 * end else begin
    end = end if end > begin else begin + 1.0

    def across(x: float) -> float:
        return _LEFT + (x - begin) / (end - begin) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        # What lies outside given limits ends at the edge.
        share = (scale(y) - scale(low)) / (scale(high) - scale(low))
        return _HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (_HEIGHT - _TOP - _BOTTOM)

    ticks = _log_ticks(low, high) if logarithmic else nice_ticks(low, high)
    parts: list[Markup] = []
    for tick in ticks:
        y = down(tick)
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", _number(tick), x=_LEFT - 6, y=y + 3.5, class_="tick end"))
    for tick in nice_ticks(begin, end, 4):
        parts.append(
            element("text", _number(tick), x=across(tick), y=_HEIGHT - _BOTTOM + 15, class_="tick middle")
        )
    parts.append(element("text", "iteration", x=_WIDTH - _RIGHT, y=_HEIGHT - 2, class_="tick end"))
    parts.append(
        element(
            "line",
            x1=_LEFT,
            x2=_WIDTH - _RIGHT,
            y1=_HEIGHT - _BOTTOM,
            y2=_HEIGHT - _BOTTOM,
            class_="axis",
        )
    )
    if reference is not None:
        y = down(reference)
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="reference"))
    for line in lines:
        parts += _draw(line, across, down, logarithmic)
    described = f"{title}: {', '.join(dict.fromkeys(line.label for line in lines))}"
    return element(
        "figure",
        element("figcaption", title, element("span", f" {unit}", class_="unit") if unit else None),
        element("svg", *parts, viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}", role="img", aria_label=described),
        element("p", note, class_="note") if note else None,
        class_="chart",
    )


def _draw(
    line: Line, across: Callable[[float], float], down: Callable[[float], float], logarithmic: bool
) -> list[Markup]:
    """Band, line and markers."""
    good = np.isfinite(line.y) & ((line.y > 0) | (not logarithmic))
    parts = []
    if line.low is not None and line.high is not None and good.all() and len(line.x) > 1:
        edge = [f"{across(x):.1f},{down(y):.1f}" for x, y in zip(line.x, line.high)]
        edge += [f"{across(x):.1f},{down(y):.1f}" for x, y in zip(line.x[::-1], line.low[::-1])]
        parts.append(element("polygon", points=" ".join(edge), class_=f"band c{line.colour}"))
    path, pen = [], "M"
    for x, y, fine in zip(line.x.tolist(), line.y.tolist(), good.tolist()):
        if fine:
            path.append(f"{pen}{across(x):.1f} {down(y):.1f}")
        pen = "L" if fine else "M"
    if path:
        dash = _DASHES[line.style % len(_DASHES)]
        parts.append(
            element(
                "path",
                element("title", line.label),
                d=" ".join(path),
                class_=f"line c{line.colour}",
                stroke_dasharray=dash,
            )
        )
    if good.sum() <= _MAX_MARKERS:
        for x, y in zip(line.x[good].tolist(), line.y[good].tolist()):
            told = element("title", f"{line.label}: {y:.4g} at {x:g}")
            parts.append(
                element("circle", told, cx=across(x), cy=down(y), r=2.6, class_=f"dot c{line.colour}")
            )
    return parts


def _thinned(line: Line) -> Line:
    """At most a few hundred points, each the mean of its neighbours: more cannot be seen."""
    if len(line.x) <= _MAX_POINTS:
        return line
    blocks = np.array_split(np.arange(len(line.x)), _MAX_POINTS)

    def mean(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else np.array([values[block].mean() for block in blocks])

    x, y = mean(line.x), mean(line.y)
    assert x is not None and y is not None
    return Line(line.label, line.colour, x, y, mean(line.low), mean(line.high), line.style)


def _limits(
    values: np.ndarray, from_zero: bool, logarithmic: bool, reference: float | None
) -> tuple[float, float]:
    if len(values) == 0:
        return (0.1, 1.0) if logarithmic else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
    if logarithmic:
        return low / 1.2, high * 1.2
    if from_zero:
        return 0.0, high * 1.05 if high > 0 else 1.0
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    return low - margin, high + margin


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        ticks = [10.0**power * factor for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks if len(ticks) >= 2 else nice_ticks(low, high, 4)


def _number(value: float) -> str:
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}".replace("-", "−")
