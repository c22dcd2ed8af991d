"""Figures of attention: where each DET token of several detectors looks, by objects or by layers, and where the class
token of several classifiers does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mokd_det.visualization.attention_detector import CrossAttention, DetectorAttention, SamplingPoints
from mokd_det.visualization.attention_drawing import HEAT, LEVEL_COLOURS, draw_heat, draw_points
from mokd_det.visualization.box_drawing import draw_frame, empty_frame, show_image
from mokd_det.visualization.figure_style import INK, MUTED, draw_key, figure_style, new_figure
from mokd_det.visualization.predictions import box_overlaps

__all__ = [
    "ClassMaps",
    "ObjectTokens",
    "confident_tokens",
    "group_tokens",
    "class_attention_figure",
    "layer_attention_figure",
    "object_attention_figure",
]

_SAME_PLACE = 0.5
_CELL, _GAP, _GROUP_GAP = 1.9, 0.06, 0.2
_LEFT, _MARGIN, _CAPTION, _FOOT = 0.3, 0.08, 0.2, 0.62
_FRAME = "#FFFFFF"
Draw = Callable[[Axes], None]


@dataclass(frozen=True)
class _Panel:
    """One picture and the line under it; without ``draw``, an empty frame with that line in its middle."""

    caption: str
    draw: Draw | None = None


@dataclass(frozen=True)
class ClassMaps:
    """What one classifier attends to in one image: what it predicts, and the maps (H, W), in the order of the figure's
    columns; None: it has no such."""

    caption: str
    maps: Sequence[np.ndarray | None]


@dataclass(frozen=True)
class ObjectTokens:
    """An object that at least one detector is confident of: its box (4,) xyxy by the first of them, and per detector
    the index of its DET token, or None."""

    box: np.ndarray
    tokens: tuple[int | None, ...]


def confident_tokens(attention: DetectorAttention, threshold: float) -> list[int]:
    """DET tokens whose best class has at least this probability, best first."""
    order = np.argsort(-attention.scores, kind="stable")
    return [int(token) for token in order if attention.scores[token] >= threshold]


def group_tokens(detectors: Sequence[DetectorAttention], threshold: float) -> list[ObjectTokens]:
    """One entry for every object that a confident DET token of any detector predicts.

    The first detector's tokens are the first objects, best first. A token of another detector belongs to the object
    that its box covers best with IoU ≥ 0.5, one of its own class before all others, if no better token of the same
    detector has it already; else it is an object of its own.
    """
    objects: list[tuple[np.ndarray, int, list[int | None]]] = []
    for number, attention in enumerate(detectors):
        before = len(objects)
        for token in confident_tokens(attention, threshold):
            box, label = attention.boxes[token], int(attention.classes[token])
            free = [
                (label == other_label, overlap, entry)
                for other_box, other_label, entry in objects[:before]
                if entry[number] is None
                and (overlap := float(box_overlaps(box[None], other_box[None])[0, 0])) >= _SAME_PLACE
            ]
            if free:
                max(free, key=lambda candidate: candidate[:2])[2][number] = token
            else:
                entry: list[int | None] = [None] * len(detectors)
                entry[number] = token
                objects.append((box, label, entry))
    return [ObjectTokens(box, tuple(entry)) for box, _, entry in objects]


def object_attention_figure(
    image: np.ndarray,
    detectors: Sequence[tuple[str, DetectorAttention]],
    class_names: Sequence[str],
    *,
    threshold: float,
    max_objects: int = 8,
    smooth: bool | None = None,
    title: str = "",
) -> Figure:
    """One row per object: the image, and for each detector where the object's DET token looks in the last block of the
    backbone and which points it reads in the last layer of the decoder.

    Args:
        image: uint8 (H, W, 3) RGB, original size.
        detectors: (name, attention in this image).
        class_names: by class index.
        threshold: DET tokens below this score are not drawn.
        max_objects: rows, at most.
        smooth: see :func:`mokd_det.visualization.attention_drawing.draw_heat`.

    Raises:
        ValueError: no detectors.
    """
    objects, note = _objects(detectors, threshold, max_objects)
    groups = [("image", [""])] + [(name, _kinds(attention)) for name, attention in detectors]
    rows = []
    for found in objects:
        row = [_Panel("", partial(_plain, image=image, found=found))]
        for number, (_, attention) in enumerate(detectors):
            token = None if found is None else found.tokens[number]
            if token is None:
                row += [_Panel(f"no token ≥ {threshold:.2g}")] * len(_kinds(attention))
                continue
            said, number_said = _said(attention, token, class_names), f"token {token}"
            if attention.cross:
                row.append(_cross_panel(image, attention, attention.cross[-1], token, said, smooth))
            else:
                number_said = f"{said}, {number_said}"
            if attention.sampling:
                row.append(_points_panel(image, attention, attention.sampling[-1], token, number_said))
        rows.append(row)
    names = [str(i + 1) for i in range(len(rows))]
    return _assemble(image, groups, rows, names, title, _strides(detectors), note)


def layer_attention_figure(
    image: np.ndarray,
    detectors: Sequence[tuple[str, DetectorAttention]],
    class_names: Sequence[str],
    *,
    threshold: float,
    max_objects: int = 3,
    smooth: bool | None = None,
    title: str = "",
) -> Figure:
    """For every object one row per detector: all blocks of the backbone's last stage, then all layers of the decoder.

    The arguments are those of :func:`object_attention_figure`.

    Raises:
        ValueError: no detectors.
    """
    objects, note = _objects(detectors, threshold, max_objects)
    blocks = max(len(attention.cross) for _, attention in detectors)
    layers = max(len(attention.sampling) for _, attention in detectors)
    groups = [
        ("image", [""]),
        (_cross_heading(detectors), [f"block {i + 1}" for i in range(blocks)]),
        ("sampling points, decoder", [f"layer {i + 1}" for i in range(layers)]),
    ]
    groups = [group for group in groups if group[1]]
    rows, names = [], []
    for found in objects:
        for number, (name, attention) in enumerate(detectors):
            token = None if found is None else found.tokens[number]
            names.append(name)
            row = [_Panel("", partial(_plain, image=image, found=found))]
            if token is None:
                rows.append([*row, *[_Panel(f"no token ≥ {threshold:.2g}")] * (blocks + layers)])
                continue
            row = [_Panel(_said(attention, token, class_names), partial(_plain, image=image, found=found))]
            row += [_cross_panel(image, attention, cross, token, "", smooth) for cross in attention.cross]
            row += [_Panel("no such block")] * (blocks - len(attention.cross))
            row += [_points_panel(image, attention, points, token, "") for points in attention.sampling]
            rows.append(row + [_Panel("no such layer")] * (layers - len(attention.sampling)))
    return _assemble(image, groups, rows, names, title, _strides(detectors), note)


def class_attention_figure(
    images: Sequence[np.ndarray],
    classifiers: Sequence[tuple[str, Sequence[ClassMaps]]],
    columns: Sequence[str],
    *,
    row_names: Sequence[str] = (),
    smooth: bool | None = None,
    title: str = "",
) -> Figure:
    """One row per image: the image as the classifiers see it, and the maps of each.

    Args:
        images: uint8 (H, W, 3) RGB.
        classifiers: (name, per image).
        columns: what the maps are.
        row_names: text left of each row; empty: none.
        smooth: see :func:`object_attention_figure`.

    Raises:
        ValueError: no images, or lists of different lengths.
    """
    if not images or not classifiers or any(len(found) != len(images) for _, found in classifiers):
        raise ValueError(f"{len(images)} images with {[len(found) for _, found in classifiers]} sets of maps")
    groups = [("image", [""])] + [(name, list(columns)) for name, _ in classifiers]
    rows = []
    for i, image in enumerate(images):
        row = [_Panel("", partial(show_image, image=image))]
        for _, found in classifiers:
            for j, weights in enumerate(found[i].maps):
                row.append(_map_panel(image, weights, found[i].caption if j == 0 else "", smooth))
        rows.append(row)
    return _assemble(images[0], groups, rows, list(row_names) or [""] * len(rows), title)


# --- panels ----------------------------------------------------------------------------------------------------


def _plain(axes: Axes, image: np.ndarray, found: ObjectTokens | None) -> None:
    show_image(axes, image)
    if found is not None:
        draw_frame(axes, found.box, _FRAME, "-")


def _cross_panel(
    image: np.ndarray,
    attention: DetectorAttention,
    cross: CrossAttention,
    token: int,
    said: str,
    smooth: bool | None,
) -> _Panel:
    def draw(axes: Axes) -> None:
        draw_heat(axes, image, cross.maps()[token], cross.cell, smooth=smooth)
        draw_frame(axes, attention.boxes[token], _FRAME, "-")

    share = f"{cross.on_image()[token]:.0%} on the image"
    return _Panel(f"{said}, {share}" if said else share, draw)


def _points_panel(
    image: np.ndarray, attention: DetectorAttention, sampling: SamplingPoints, token: int, caption: str
) -> _Panel:
    def draw(axes: Axes) -> None:
        draw_points(axes, image, sampling, token)
        draw_frame(axes, attention.boxes[token], _FRAME, "-")

    return _Panel(caption, draw)


def _map_panel(image: np.ndarray, weights: np.ndarray | None, caption: str, smooth: bool | None) -> _Panel:
    if weights is None:
        return _Panel("no such block")
    cell = (image.shape[1] / weights.shape[1], image.shape[0] / weights.shape[0])
    return _Panel(caption, lambda axes: draw_heat(axes, image, weights, cell, smooth=smooth))


def _said(attention: DetectorAttention, token: int, class_names: Sequence[str]) -> str:
    label = int(attention.classes[token])
    name = class_names[label] if label < len(class_names) else f"class {label}"
    return f"{name} {attention.scores[token]:.2f}"


def _objects(
    detectors: Sequence[tuple[str, DetectorAttention]], threshold: float, most: int
) -> tuple[Sequence[ObjectTokens | None], str]:
    """The objects that are drawn, or one empty row without any, and how many are not drawn."""
    if not detectors:
        raise ValueError("a figure of attention needs a detector")
    objects = group_tokens([attention for _, attention in detectors], threshold)
    hidden = len(objects) - most
    note = f"{hidden} more object{'s' * (hidden != 1)} not drawn" if hidden > 0 else ""
    return objects[:most] or [None], note


def _strides(detectors: Sequence[tuple[str, DetectorAttention]]) -> tuple[int, ...]:
    """Of the feature levels, finest first."""
    return tuple(
        sorted({s for _, found in detectors for points in found.sampling[-1:] for s in points.strides})
    )


def _kinds(attention: DetectorAttention) -> list[str]:
    """What can be drawn of a detector."""
    return [attention.cross_name] * bool(attention.cross) + ["sampling points"] * bool(attention.sampling)


def _cross_heading(detectors: Sequence[tuple[str, DetectorAttention]]) -> str:
    names = {attention.cross_name for _, attention in detectors if attention.cross}
    return "RAM attention, last stage" if names == {"RAM attention"} else "attention to the image"


# --- layout ----------------------------------------------------------------------------------------------------


def _assemble(
    image: np.ndarray,
    groups: Sequence[tuple[str, Sequence[str]]],
    rows: Sequence[Sequence[_Panel]],
    row_names: Sequence[str],
    title: str,
    strides: Sequence[int] = (),
    note: str = "",
) -> Figure:
    """A grid whose columns stand in named groups, and the key below it."""
    with figure_style():
        tall = _CELL * min(max(image.shape[0] / image.shape[1], 0.4), 2.0)
        left = _LEFT if any(row_names) else _MARGIN
        xs: list[float] = []
        x = left
        for _, columns in groups:
            for _ in columns:
                xs.append(x)
                x += _CELL + _GAP
            x += _GROUP_GAP - _GAP
        width = x - _GROUP_GAP + _MARGIN
        subtitles = any(name for _, columns in groups for name in columns)
        head = 0.08 + 0.3 * bool(title) + 0.22 + 0.18 * subtitles
        # A narrow figure has the key of the levels above that of the maps.
        is_narrow = width < left + 2.75 + 0.85 * len(strides) + 1.8 * bool(note)
        raised = 0.6 if strides and is_narrow else 0.0
        height = head + len(rows) * (tall + _CAPTION) + _FOOT + raised
        figure = new_figure(width, height)

        def write(x: float, y: float, text: str, size: float, **style: Any) -> None:
            """Inches from the lower left corner."""
            figure.text(x / width, y / height, text, fontsize=size, **style)

        if title:
            write(left, height - 0.08, title, 12, fontweight="bold", va="top")
        number = 0
        for name, columns in groups:
            centre = (xs[number] + xs[number + len(columns) - 1] + _CELL) / 2
            top = height - head + 0.04 + 0.18 * subtitles
            write(centre, top, name, 10.5, fontweight="bold", ha="center", va="bottom")
            for x, column in zip(xs[number:], columns):
                write(x + _CELL / 2, height - head + 0.05, column, 8.5, color=MUTED, ha="center", va="bottom")
            number += len(columns)
        y = height - head
        for name, row in zip(row_names, rows, strict=True):
            y -= tall
            turned = {"rotation": 90, "ha": "center"} if len(name) > 2 else {"ha": "right"}
            write(left - 0.09, y + tall / 2, name, 8.5, color=MUTED, va="center", **turned)
            for x, panel in zip(xs, row, strict=True):
                axes = figure.add_axes((x / width, y / height, _CELL / width, tall / height))
                if panel.draw is None:
                    empty_frame(axes, panel.caption)
                else:
                    panel.draw(axes)
                    write(x + _CELL / 2, y - 0.03, panel.caption, 8, color=INK, ha="center", va="top")
            y -= _CAPTION
        _draw_key(figure, strides, left, note, raised)
    return figure


def _draw_key(figure: Figure, strides: Sequence[int], left: float, note: str, raised: float) -> None:
    """The scale of the maps, the colours of the levels, beside it or some inches above it, and what is not shown."""
    width, height = figure.get_size_inches()
    bar = figure.add_axes((left / width, 0.1 / height, 1.1 / width, 0.12 / height))
    bar.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=HEAT, vmin=-0.087, vmax=1)
    bar.set_axis_off()
    figure.text(
        left / width, 0.38 / height, "attention: 0 to the picture's largest", fontsize=8.5, va="center"
    )
    if strides:
        beside = left if raised else left + 2.75
        dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 6, "markeredgewidth": 0.5}
        handles = [
            Line2D(
                [], [], **dot, markerfacecolor=colour, markeredgecolor="#00000099", label=f"stride {stride}"
            )
            for colour, stride in zip(cycle(LEVEL_COLOURS), strides)
        ]
        place = beside / width, (0.08 + raised) / height
        draw_key(figure, handles, place, columnspacing=1.2, handletextpad=0.1)
        figure.text(
            (beside if raised else beside + 0.1) / width,
            (0.38 + raised) / height,
            "sampling points: colour is the level, area the weight",
            fontsize=8.5,
            va="center",
        )
    if note:
        figure.text(1 - 0.1 / width, 0.12 / height, note, fontsize=8.5, color=MUTED, ha="right", va="bottom")
