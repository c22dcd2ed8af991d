"""Figures inside an HTML page: SVG without identifiers and fonts of its own, in the style sheet's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mokd_det.visualization.chart import MARK_SIZE, Chart, Curve, draw_chart
from mokd_det.visualization.figure_style import GRID, INK, MUTED, figure_style, new_figure

__all__ = ["chart_svg", "figure_svg", "page_colour"]

_SVG = "{http://www.w3.org/2000/svg}"
_WIDTH, _HEIGHT = 400, 240
_AXES = (48 / _WIDTH, 38 / _HEIGHT, 338 / _WIDTH, 192 / _HEIGHT)
_MAX_POINTS, _MAX_MARKS = 400, 60
_THEME = {INK: "var(--ink)", MUTED: "var(--soft)", GRID: "var(--rule)"}


def page_colour(number: int) -> str:
    """Stands for the style sheet's colour ``--c<number>`` while a figure is drawn."""
    return f"#fe00{number:02x}"


def chart_svg(chart: Chart) -> str:
    """A chart, its curves' colours from :func:`page_colour`: sharp at every size, readable in light and dark, and told
    what the pointer rests on.

    Of long curves every point is the mean of its neighbours; what lies outside given limits ends at the edge.
    """
    chart = replace(chart, curves=[_thinned(curve, chart.limits) for curve in chart.curves], marks=_MAX_MARKS)
    with figure_style(), matplotlib.rc_context({"xtick.labelsize": 12.5, "ytick.labelsize": 12.5}):
        figure = new_figure(_WIDTH / 72, _HEIGHT / 72)
        axes = figure.add_axes(_AXES)
        lines = draw_chart(axes, chart)
        axes.tick_params(length=0)
        axes.set_xlabel(chart.across, loc="right", fontsize=12.5, color=MUTED, labelpad=1)
    said = {}
    for number, (curve, line) in enumerate(zip(chart.curves, lines)):
        line.set_gid(f"curve{number}")
        good = np.isfinite(curve.y) & ((curve.y > 0) | (chart.scale != "log"))
        points = zip(curve.x[good].tolist(), curve.y[good].tolist())
        said[f"curve{number}"] = [curve.label, *(f"{curve.label}: {y:.4g} at {x:g}" for x, y in points)]
    labels = ", ".join(dict.fromkeys(curve.label for curve in chart.curves))
    svg = figure_svg(figure, said)
    svg.set("aria-label", f"{chart.title}: {labels}")
    return ElementTree.tostring(svg, encoding="unicode")


def figure_svg(
    figure: Figure, said: Mapping[str, list[str]] | None = None, widths: Mapping[str, float] | None = None
) -> ElementTree.Element:
    """A figure as an ``svg`` element of HTML.

    Args:
        figure: what is clipped in it, is not clipped here.
        said: gid of a line → its title and those of its round marks, in their order.
        widths: gid of a text → its width in points, which it gets whatever font the reader has.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    shapes = {path.get("id"): path for path in root.iter(f"{_SVG}path")}
    svg = ElementTree.Element("svg", {"viewBox": root.get("viewBox", ""), "role": "img"})
    for name, told, node in _shown(root, "", [], said or {}):
        kind, style = node.tag.removeprefix(_SVG), node.get("style", "")
        if kind == "path" and node.get("d") and style != "fill: none":
            made = _add(svg, "path", style, d=node.get("d"))
        elif kind == "text":
            made = _add(svg, "text", style, x=node.get("x"), y=node.get("y"))
            made.text = node.text
            if widths and name in widths:
                made.attrib.update(textLength=f"{widths[name]:.2f}", lengthAdjust="spacingAndGlyphs")
        elif kind == "use" and said and name in said:
            made = _add(svg, "circle", style, cx=node.get("x"), cy=node.get("y"), r=str(MARK_SIZE / 2))
        elif kind == "use":
            shape = shapes[node.attrib["{http://www.w3.org/1999/xlink}href"][1:]].get("d")
            place = f"translate({node.get('x')} {node.get('y')})"
            made = _add(svg, "path", style, d=shape, transform=place)
        else:
            continue
        if told and kind != "text":
            ElementTree.SubElement(made, "title").text = told.pop(0)
    return svg


def _shown(
    node: ElementTree.Element, name: str, told: list[str], said: Mapping[str, list[str]]
) -> Iterator[tuple[str, list[str], ElementTree.Element]]:
    """What is in groups, in the order of drawing, with the group's gid and what is still to be said of it."""
    for child in node:
        if child.tag == f"{_SVG}g":
            own = child.get("id", name)
            yield from _shown(child, own, list(said.get(own, [])) if "id" in child.attrib else told, said)
        elif node.tag == f"{_SVG}g":
            yield name, told, child


def _add(svg: ElementTree.Element, tag: str, style: str, **attributes: str | None) -> ElementTree.Element:
    """An element with short numbers in one line, and with the style's font family and colours left to the page."""
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    style = re.sub(r"#fe00([0-9a-f]{2})", lambda found: f"var(--c{int(found[1], 16)})", style)
    for colour, name in _THEME.items():
        style = style.replace(colour, name)
    attributes["style"] = style or None
    kept = {key: _short(value) if key != "style" else value for key, value in attributes.items() if value}
    return ElementTree.SubElement(svg, tag, kept)


def _short(numbers: str) -> str:
    """Two digits after the point are a hundredth of a pixel."""
    short = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), numbers)
    return " ".join(short.split())


def _thinned(curve: Curve, limits: tuple[float, float] | None) -> Curve:
    """At most a few hundred points, within the limits."""
    blocks = np.array_split(np.arange(len(curve.x)), min(len(curve.x), _MAX_POINTS) or 1)

    def mean(values: np.ndarray | None) -> np.ndarray | None:
        if values is None or len(values) == 0:
            return values
        return np.array([values[block].mean() for block in blocks])

    x, y = mean(curve.x), mean(curve.y)
    assert x is not None and y is not None
    y = y if limits is None else y.clip(*limits)
    return replace(curve, x=x, y=y, low=mean(curve.low), high=mean(curve.high))
