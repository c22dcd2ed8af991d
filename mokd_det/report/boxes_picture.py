"""An image with boxes as SVG: frames and labels stay sharp, and small images are enlarged without smoothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mokd_det.report.markup import Markup, element
from mokd_det.visualization.box_drawing import class_colour
from mokd_det.visualization.predictions import BoxSet, match_predictions

__all__ = ["boxes_picture", "image_data"]

_MAX_SIDE = 640
_PIXELATED_BELOW = 160
_MAX_LABELS = 20


def image_data(pixels: np.ndarray) -> str:
    """An image as the address of itself, so that the page needs no other file.

    Small ones are kept exactly, large ones reduced and compressed.

    Args:
        pixels: uint8 (H, W, 3) RGB.
    """
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if max(image.size) <= _PIXELATED_BELOW:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))
        image.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def boxes_picture(
    data: str,
    size_wh: tuple[int, int],
    found: BoxSet,
    truth: BoxSet,
    class_names: Sequence[str],
    described: str,
) -> Markup:
    """An image with its boxes.

    A solid frame with a light label has a true box of its class with IoU ≥ 0.5; a dashed one with a dark label has
    none; a dotted white one is a true box that was not found.

    Args:
        data: from :func:`image_data`.
        size_wh: width and height that the boxes refer to, pixels.
        found: what is drawn, best score first; the truth itself has no scores.
        truth: what it is compared with.
        class_names: by contiguous index.
        described: the picture in words.
    """
    width, height = size_wh
    # In a picture of usual width this is a legible size.
    unit = max(width, height * 0.8) / 100
    right, missed = (
        match_predictions(found, truth)
        if found.scores is not None
        else (np.ones(len(found.boxes), dtype=bool), [])
    )
    image = element(
        "image",
        href=data,
        width=width,
        height=height,
        preserveAspectRatio="none",
        class_="pixelated" if max(size_wh) <= _PIXELATED_BELOW else None,
    )
    frames = [_frame(truth.boxes[i], "#ffffff", f"{unit:.2f} {1.6 * unit:.2f}", unit) for i in missed]
    labels = []
    # The best ones are drawn last, on top.
    for i in reversed(range(len(found.boxes))):
        name = class_names[int(found.classes[i])]
        colour = class_colour(int(found.classes[i]))
        dash = None if right[i] else f"{3.2 * unit:.2f} {1.8 * unit:.2f}"
        frames.append(_frame(found.boxes[i], colour, dash, unit))
        if i < _MAX_LABELS:
            score = "" if found.scores is None else f" {found.scores[i]:.2f}"
            ink, fill = ("#000000", colour) if right[i] else (colour, "#1c1c1c")
            labels.append(_label(f"{name}{score}", found.boxes[i], ink, fill, unit, size_wh))
    return element(
        "svg",
        element("title", described),
        image,
        frames,
        labels,
        viewBox=f"0 0 {width} {height}",
        role="img",
        class_="picture",
    )


def _frame(box: np.ndarray, colour: str, dash: str | None, unit: float) -> list[Markup]:
    x0, y0, x1, y1 = (float(value) for value in box)
    place = {"x": x0, "y": y0, "width": max(x1 - x0, 0.0), "height": max(y1 - y0, 0.0), "fill": "none"}
    # The dark seam keeps the line visible on bright images.
    return [
        element(
            "rect",
            **place,
            stroke="#000000",
            stroke_opacity=0.55,
            stroke_width=1.9 * unit,
            stroke_dasharray=dash,
        ),
        element("rect", **place, stroke=colour, stroke_width=1.0 * unit, stroke_dasharray=dash),
    ]


def _label(
    words: str, box: np.ndarray, ink: str, fill: str, unit: float, size_wh: tuple[int, int]
) -> list[Markup]:
    size = 5.6 * unit
    width, height = (0.66 * len(words) + 0.5) * size, 1.25 * size
    x = min(max(float(box[0]) - 0.5 * unit, 0.0), max(size_wh[0] - width, 0.0))
    above = float(box[1]) - height
    y = above if above >= 0 else min(float(box[3]), size_wh[1] - height)
    return [
        element("rect", x=x, y=y, width=width, height=height, fill=fill),
        element(
            "text",
            words,
            x=x + 0.25 * size,
            y=y + 0.95 * size,
            font_size=size,
            fill=ink,
            # The width does not depend on which fonts the reader has.
            textLength=width - 0.5 * size,
            lengthAdjust="spacingAndGlyphs",
            class_="boxlabel",
        ),
    ]
