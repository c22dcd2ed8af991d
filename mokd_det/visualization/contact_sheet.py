"""Sample images of a data set with their boxes, in a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from mokd_det.data.sample_images import SampleImage
from mokd_det.visualization.box_drawing import class_colour, draw_frame, empty_frame, place_label, show_image
from mokd_det.visualization.figure_style import INK, MUTED, figure_style, new_figure

__all__ = ["contact_sheet"]

_CELL = 2.3
_GAP, _MARGIN, _CAPTION = 0.12, 0.16, 0.36
_MAX_LABELS = 12
_CAPTION_LENGTH = 38
_CROWD = (0, (2, 1.4))


def contact_sheet(
    images: Sequence[SampleImage],
    class_names: Sequence[str],
    *,
    title: str = "",
    subtitle: str = "",
    columns: int = 6,
) -> Figure:
    """A grid of images in equal cells, each with its boxes and the names of their classes.

    Of an image with many boxes the twelve largest are labelled, all are framed; crowds are dashed. The label,
    not the colour alone, tells the class. The images come by rows, in so many columns.

    Raises:
        ValueError: no images.
    """
    if not images:
        raise ValueError("a contact sheet needs an image")
    columns = max(min(columns, len(images)), 1)
    rows = -(-len(images) // columns)
    with figure_style():
        head = _MARGIN + 0.3 * bool(title) + 0.24 * bool(subtitle)
        width = max(2 * _MARGIN + columns * _CELL + (columns - 1) * _GAP, 5.0)
        height = head + rows * (_CELL + _CAPTION) + (rows - 1) * _GAP + _MARGIN
        figure = new_figure(width, height)
        renderer = figure.canvas.get_renderer()
        y = height - 0.1
        if title:
            figure.text(_MARGIN / width, y / height, title, fontsize=13, fontweight="bold", va="top")
            y -= 0.3
        if subtitle:
            figure.text(_MARGIN / width, y / height, subtitle, fontsize=9.5, color=MUTED, va="top")
        for i, image in enumerate(images):
            row, column = divmod(i, columns)
            x = _MARGIN + column * (_CELL + _GAP)
            y = height - head - row * (_CELL + _CAPTION + _GAP) - _CELL
            axes = figure.add_axes((x / width, y / height, _CELL / width, _CELL / height))
            _draw_cell(axes, renderer, image, class_names)
            _write(figure, x / width, (y - 0.05) / height, image.file_name, INK)
            _write(figure, x / width, (y - 0.2) / height, _note(image), MUTED)
    return figure


def _write(figure: Figure, x: float, y: float, text: str, colour: str) -> None:
    # The end of a file name tells more than its beginning.
    text = text if len(text) <= _CAPTION_LENGTH else f"…{text[1 - _CAPTION_LENGTH :]}"
    figure.text(x, y, text, fontsize=7.5, color=colour, va="top")


def _note(image: SampleImage) -> str:
    count = len(image.boxes)
    named = f", {_MAX_LABELS} named" if count > _MAX_LABELS else ""
    size = f"{image.size_wh[0]} x {image.size_wh[1]}"
    return f"id {image.image_id}, {size}, {count} box{'es' * (count != 1)}{named}"


def _draw_cell(axes: Axes, renderer: RendererAgg, image: SampleImage, class_names: Sequence[str]) -> None:
    if image.pixels is None:
        empty_frame(axes, "cannot be decoded")
        return
    axes.set_facecolor("#efefef")
    show_image(axes, image.pixels)
    _fill_square(axes, image.pixels)
    frames = [
        draw_frame(axes, box, class_colour(label), _CROWD if crowd else "-")
        for box, label, crowd in zip(image.boxes, image.classes, image.crowd, strict=True)
    ]
    outlines = [frame.get_window_extent(renderer) for frame in frames]
    taken: list[Bbox] = []
    areas = np.prod(image.boxes[:, 2:] - image.boxes[:, :2], axis=1)
    for i in np.argsort(-areas, kind="stable")[:_MAX_LABELS]:
        text = class_names[int(image.classes[i])] + (" (crowd)" if image.crowd[i] else "")
        colour = class_colour(image.classes[i])
        place_label(axes, renderer, text, image.boxes[i], "black", colour, taken, outlines)


def _fill_square(axes: Axes, pixels: np.ndarray) -> None:
    """Limits that put the picture in the middle of a square, so that all cells are equal."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    axes.set_xlim((width - side) / 2, (width + side) / 2)
    axes.set_ylim((height + side) / 2, (height - side) / 2)
