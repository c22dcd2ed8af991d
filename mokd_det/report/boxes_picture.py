"""An image with boxes as SVG: frames and labels stay sharp, and small images are enlarged without smoothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from mokd_det.visualization.figure_style import figure_style, new_figure
from mokd_det.visualization.inline_svg import figure_svg
from mokd_det.visualization.predictions import BoxSet, draw_boxes

__all__ = ["boxes_picture", "image_data", "is_small"]

_MAX_SIDE = 640
_PIXELATED_BELOW = 160
_MAX_LABELS = 20
_WIDTH = 2.1


def is_small(pixels: np.ndarray) -> bool:
    """Whether an image (H, W, 3) is kept exactly and enlarged without smoothing."""
    return max(pixels.shape[:2]) <= _PIXELATED_BELOW


def image_data(pixels: np.ndarray) -> str:
    """An image, uint8 (H, W, 3) RGB, as the address of itself, so that the page needs no other file.

    Small ones are kept exactly, large ones reduced and compressed.
    """
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if is_small(pixels):
        image.save(buffer, "PNG", optimize=True)
        return data_address(buffer.getvalue(), "png")
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    image.save(buffer, "JPEG", quality=85)
    return data_address(buffer.getvalue(), "jpeg")


def data_address(content: bytes, kind: str) -> str:
    """A file as the address of itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def boxes_picture(
    pixels: np.ndarray, found: BoxSet, truth: BoxSet, class_names: Sequence[str], described: str
) -> str:
    """An image, uint8 (H, W, 3) RGB, with boxes in its pixels (:func:`~mokd_det.visualization.predictions.draw_boxes`);
    ``described`` says in words what it shows."""
    height, width = pixels.shape[:2]
    with figure_style():
        figure = new_figure(_WIDTH, _WIDTH * height / width)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        renderer = figure.canvas.get_renderer()
        draw_boxes(axes, renderer, found, truth, class_names, _MAX_LABELS)
    widths = {}
    for number, text in enumerate(axes.texts):
        text.set_gid(f"label{number}")
        widths[f"label{number}"] = text.get_window_extent(renderer).width * 72 / figure.dpi
    svg = figure_svg(figure, widths=widths)
    svg.set("class", "picture")
    shown = {
        "href": image_data(pixels),
        "width": f"{72 * _WIDTH:g}",
        "height": f"{72 * _WIDTH * height / width:.2f}",
        "preserveAspectRatio": "none",
        **({"class": "pixelated"} if is_small(pixels) else {}),
    }
    svg.insert(0, ElementTree.Element("image", shown))
    title = ElementTree.Element("title")
    title.text = described
    svg.insert(0, title)
    return ElementTree.tostring(svg, encoding="unicode")
