"""Boxes and their labels on pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Stroke, withStroke
from matplotlib.transforms import Bbox

from mokd_det.visualization.figure_style import LIGHT_COLOURS, MUTED

__all__ = ["class_colour", "draw_frame", "empty_frame", "place_label", "show_image"]


def show_image(axes: Axes, image: np.ndarray) -> None:
    """Fill axes with a picture; data coordinates are its pixels. Small ones are enlarged without smoothing."""
    height, width = image.shape[:2]
    axes.imshow(image, interpolation="nearest", extent=(0, width, height, 0), aspect="equal")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def empty_frame(axes: Axes, text: str) -> None:
    """Axes without a picture, and why."""
    axes.set(facecolor="#f1f1f1", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    place = {"ha": "center", "va": "center", "transform": axes.transAxes, "wrap": True}
    axes.text(0.5, 0.5, text, fontsize=8, color=MUTED, **place)


def draw_frame(axes: Axes, box: np.ndarray, colour: str, style: object) -> Rectangle:
    """The outline of an xyxy box, visible on dark and on bright pictures."""
    x0, y0, x1, y1 = box
    frame = Rectangle(
        (x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.5, linestyle=style
    )
    # A dark seam keeps the line visible on bright images; it has the dashes of its line.
    frame.set_path_effects([Stroke(linewidth=3.0, foreground="#00000099"), withStroke(linewidth=0)])
    axes.add_patch(frame)
    return frame


def place_label(
    axes: Axes,
    renderer: RendererAgg,
    text: str,
    box: np.ndarray,
    ink: str,
    fill: str,
    taken: list[Bbox],
    outlines: Sequence[Bbox],
) -> None:
    """Write a label at the corner of its box where it covers least, and on no other label if possible."""
    x0, y0, x1, y1 = box
    corners = [
        (x0, y0, "left", "bottom"),
        (x0, y1, "left", "top"),
        (x1, y0, "right", "bottom"),
        (x1, y1, "right", "top"),
        (x1, y0, "left", "top"),
        (x0, y0, "right", "top"),
        (x1, y1, "left", "bottom"),
        (x0, y1, "right", "bottom"),
        (x0, y0, "left", "top"),
        (x0, y1, "left", "bottom"),
    ]
    patch = {"facecolor": fill, "edgecolor": "none", "pad": 1.0}
    label = axes.text(x0, y0, text, fontsize=7, fontweight="bold", color=ink, bbox=patch)
    view = axes.get_window_extent(renderer)
    best: tuple[float, tuple[float, float, str, str], Bbox] | None = None
    to_data = axes.transData.inverted()
    for rank, (x, y, horizontal, vertical) in enumerate(corners):
        label.set(x=x, y=y, horizontalalignment=horizontal, verticalalignment=vertical)
        label.update_bbox_position_size(renderer)
        extent = label.get_bbox_patch().get_window_extent(renderer)
        shift = _shift_into(extent, view)
        extent = extent.translated(*shift)
        x, y = to_data.transform(axes.transData.transform((x, y)) + shift)
        # Weights: a label on a label cannot be read; one on a box, its own included, hides what it names.
        cost = 1000 * sum(_shared(extent, other) for other in taken) + 0.1 * rank
        # That little is the line it stands on.
        cost += 10 * sum(max(0.0, _shared(extent, outline) - 0.2) for outline in outlines)
        if best is None or cost < best[0]:
            best = (cost, (x, y, horizontal, vertical), extent)
    assert best is not None
    x, y, horizontal, vertical = best[1]
    label.set(x=x, y=y, horizontalalignment=horizontal, verticalalignment=vertical)
    taken.append(best[2])


def _shift_into(extent: Bbox, view: Bbox) -> np.ndarray:
    """Pixels (x, y) by which to move a label so that the picture's edge does not cut it."""
    low = np.maximum(view.min - extent.min, 0)
    return low + np.minimum(view.max - (extent.max + low), 0)


def _shared(a: Bbox, b: Bbox) -> float:
    """Share of ``a`` that lies in ``b``."""
    overlap = Bbox.intersection(a, b)
    return 0.0 if overlap is None else overlap.width * overlap.height / max(a.width * a.height, 1e-9)


def class_colour(label: int) -> str:
    """The colour of a class; there are ten, so the label must tell which class it is."""
    return LIGHT_COLOURS[int(label) % len(LIGHT_COLOURS)]
