"""What all figures share: colours that colour-blind readers can tell apart, type sizes, the way to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from mokd_det.checkpoint.atomic_file import atomic_write

__all__ = [
    "DPI",
    "INK",
    "LIGHT_COLOURS",
    "LINE_COLOURS",
    "LINE_STYLES",
    "draw_header",
    "draw_key",
    "draw_legend",
    "figure_style",
    "literal_text",
    "new_figure",
    "plain_axes",
    "save_png",
]

DPI = 150
INK = "#262626"
MUTED = "#6b6b6b"
GRID = "#e4e4e4"

LINE_COLOURS = (
    *("#3a3a3a", "#E69F00", "#0072B2", "#009E73", "#CC79A7"),
    *("#D55E00", "#56B4E9", "#7B3FA0", "#A6761D", "#9A9A9A"),
)
"""For lines on white: Okabe and Ito's palette, ordered so that the first ones also differ in brightness."""

LINE_STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))

LIGHT_COLOURS = (
    *("#FFFFFF", "#EE8866", "#77AADD", "#EEDD88", "#FFAABB"),
    *("#44BB99", "#99DDFF", "#BBCC33", "#C9B2F5", "#AAAA00"),
)
"""For marks on photographs, under black text: Tol's light palette, with white and lilac."""


@contextmanager
def literal_text() -> Iterator[None]:
    """Texts that are made or drawn meanwhile show every character as it stands: names of classes, runs and files are no
    formulas and no TeX."""
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        yield


class _LiteralFigure(Figure):
    """A figure of literal texts, those too that matplotlib makes when it draws: labels of axes' ticks."""

    def draw(self, renderer: RendererBase) -> None:
        with literal_text():
            super().draw(renderer)


@contextmanager
def figure_style() -> Iterator[None]:
    """Sizes, weights and literal texts while a figure is built; matplotlib's own settings are put back afterwards."""
    settings = {
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.linewidth": 0.8,
        "axes.titlesize": 10,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "text.color": INK,
        "xtick.color": MUTED,
        "xtick.labelcolor": INK,
        "xtick.labelsize": 8,
        "ytick.color": MUTED,
        "ytick.labelcolor": INK,
        "ytick.labelsize": 8,
    }
    with literal_text(), matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of the given inches that can measure its texts and draws them literally, without any global
    state."""
    figure = _LiteralFigure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Axes) -> None:
    """Only the axes that carry numbers, and a faint grid behind the lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def draw_legend(
    parent: Figure | Axes, handles: Sequence[Line2D], labels: Sequence[str], **settings: Any
) -> Legend:
    """A legend that shows every label as it stands; matplotlib's own leaves out those that begin with "_"."""
    legend = parent.legend(handles, [" "] * len(handles), **settings)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)
    return legend


def draw_key(figure: Figure, handles: Sequence[Line2D], place: tuple[float, float], **settings: Any) -> None:
    """What the marks of a figure mean, in one line whose lower left corner is at ``place``."""
    settings |= {"ncols": len(handles), "fontsize": 8.5, "borderaxespad": 0.0, "borderpad": 0.0}
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=place, **settings)


def draw_header(figure: Figure, title: str, entries: Sequence[tuple[str, str]]) -> float:
    """Title ("": none) and one legend of all runs, (label, colour), at the top, on as many lines as the figure's width
    demands; returns the share of the figure's height that is left below."""
    inches = figure.get_figheight()
    top = 1.0 - 0.1 / inches
    if title:
        figure.text(0.012, top, title, fontsize=12, fontweight="bold", va="top")
        top -= 0.27 / inches
    if entries:
        handles = [Line2D([], [], color=colour, linewidth=2.4) for _, colour in entries]
        columns = len(handles)
        while True:
            legend = draw_legend(
                figure,
                handles,
                [label for label, _ in entries],
                loc="upper left",
                bbox_to_anchor=(0.012, top),
                ncols=columns,
                fontsize=9.5,
                borderaxespad=0.0,
                borderpad=0.0,
                columnspacing=1.8,
            )
            box = legend.get_window_extent().transformed(figure.transFigure.inverted())
            if box.x1 <= 0.99 or columns == 1:
                break
            legend.remove()
            columns -= 1
        top = box.y0 - 0.12 / inches
    return top


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure; the file is the old one or the complete new one."""
    with atomic_write(path) as handle:
        figure.savefig(handle, format="png", dpi=DPI)
