"""A grid of pictures: what is there, and what each of several models finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from mokd_det.visualization.box_drawing import class_colour, draw_frame, place_label, show_image
from mokd_det.visualization.figure_style import INK, MUTED, draw_key, figure_style, new_figure

__all__ = ["BoxSet", "box_overlaps", "draw_boxes", "predictions_figure"]

_CELL = 2.1
_MATCHING_IOU = 0.5
_RIGHT, _WRONG, _MISSED = "-", (0, (3, 1.6)), (0, (1, 1.6))


@dataclass(frozen=True)
class BoxSet:
    """Boxes (N, 4) of one image, absolute xyxy in its pixels, with contiguous class indices (N,) and scores (N,) in
    [0, 1]; the truth has none."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None

    @classmethod
    def from_annotations(cls, annotations: Sequence[dict]) -> BoxSet:
        """The truth in Detectron2's standard dicts, without crowds."""
        kept = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
        boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in kept]
        return cls(
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            np.array([a["category_id"] for a in kept], dtype=np.int64),
        )

    @classmethod
    def from_instances(cls, instances: Instances) -> BoxSet:
        """A detector's output, best score first."""
        order = instances.scores.argsort(descending=True)
        instances = instances[order].to("cpu")
        return cls(
            instances.pred_boxes.tensor.detach().double().numpy(),
            instances.pred_classes.numpy(),
            instances.scores.detach().double().numpy(),
        )

    def above(self, score: float) -> BoxSet:
        """Those with at least this score; the truth stays as it is."""
        if self.scores is None:
            return self
        kept = self.scores >= score
        return replace(self, boxes=self.boxes[kept], classes=self.classes[kept], scores=self.scores[kept])


def predictions_figure(
    images: Sequence[np.ndarray],
    truth: Sequence[BoxSet],
    predictions: Sequence[tuple[str, Sequence[BoxSet]]],
    class_names: Sequence[str],
    *,
    min_score: float,
    title: str = "",
    row_names: Sequence[str] = (),
) -> Figure:
    """One row per image; the columns are the truth and each model's confident predictions.

    A prediction with a solid frame has a true box of its class with IoU ≥ 0.5 (each true box counts once, for
    the best score, as in COCO's AP50); a dashed one, with a dark label, has none. A dotted frame marks a true
    box that the model did not find. The label, not the colour alone, tells the class.

    Args:
        images: uint8 (H, W, 3) RGB each, of any size; small ones are enlarged without smoothing.
        truth: per image.
        predictions: (model's name, per image).
        class_names: by contiguous index.
        min_score: predictions below it are not drawn.
        row_names: text left of each row; empty: none.

    Raises:
        ValueError: no images, or lists of different lengths.
    """
    columns = [("truth", truth), *predictions]
    if not images or any(len(found) != len(images) for _, found in columns):
        raise ValueError(f"{len(images)} images with {[len(found) for _, found in columns]} sets of boxes")
    with figure_style():
        left = 0.28 if row_names else 0.06
        head, foot, gap = (0.62 if title else 0.34), 0.36, 0.05
        tall = [_CELL * min(max(image.shape[0] / image.shape[1], 0.4), 2.0) for image in images]
        width = left + len(columns) * (_CELL + gap)
        height = head + sum(tall) + gap * len(images) + foot
        figure = new_figure(width, height)
        renderer = figure.canvas.get_renderer()
        if title:
            figure.text(left / width, 1 - 0.08 / height, title, fontsize=12, fontweight="bold", va="top")
        y = height - head
        for i, image in enumerate(images):
            y -= tall[i]
            for j, (name, found) in enumerate(columns):
                x = left + j * (_CELL + gap)
                axes = figure.add_axes((x / width, y / height, _CELL / width, tall[i] / height))
                show_image(axes, image)
                draw_boxes(axes, renderer, found[i].above(min_score), truth[i], class_names)
                if i == 0:
                    axes.set_title(name, fontsize=11, fontweight="bold", pad=5)
                if j == 0 and row_names:
                    axes.set_ylabel(row_names[i], color=MUTED, fontsize=8, labelpad=3)
            y -= gap
        _draw_key(figure, min_score, left / width, 0.06 / height)
    return figure


def draw_boxes(
    axes: Axes,
    renderer: RendererAgg,
    found: BoxSet,
    truth: BoxSet,
    class_names: Sequence[str],
    max_labels: int | None = None,
) -> None:
    """Frames and labels as :func:`predictions_figure` explains them, on axes whose data coordinates are pixels.

    Args:
        found: what is drawn, best score first; the truth itself has no scores.
        truth: what it is compared with.
        max_labels: how many of the best are named; None: all.
    """
    right, missed = _match(found, truth)
    frames = [draw_frame(axes, truth.boxes[i], "#FFFFFF", _MISSED) for i in missed]
    frames += [
        draw_frame(axes, box, class_colour(label), _RIGHT if good else _WRONG)
        for box, label, good in zip(found.boxes, found.classes, right, strict=True)
    ]
    taken: list[Bbox] = []
    outlines = [frame.get_window_extent(renderer) for frame in frames]
    for i, (box, label) in enumerate(zip(found.boxes[:max_labels], found.classes, strict=False)):
        text = class_names[int(label)]
        if found.scores is not None:
            text += f"  {found.scores[i]:.2f}"
        # On equal boxes only the labels tell which prediction is the right one.
        ink, fill = ("black", class_colour(label)) if right[i] else (class_colour(label), "#1c1c1c")
        place_label(axes, renderer, text, box, ink, fill, taken, outlines)


def _match(found: BoxSet, truth: BoxSet) -> tuple[np.ndarray, list[int]]:
    """Which predictions (best first) hit a true box of their class, and which true boxes none hits. The truth itself is
    right."""
    if found.scores is None:
        return np.ones(len(found.boxes), dtype=bool), []
    overlap = box_overlaps(found.boxes, truth.boxes)
    overlap[found.classes[:, None] != truth.classes[None, :]] = 0.0
    right = np.zeros(len(found.boxes), dtype=bool)
    free = np.ones(len(truth.boxes), dtype=bool)
    for i in np.argsort(-found.scores, kind="stable"):
        candidates = np.where(free, overlap[i], 0.0)
        if candidates.max(initial=0.0) >= _MATCHING_IOU:
            free[candidates.argmax()] = False
            right[i] = True
    return right, np.flatnonzero(free).tolist()


def box_overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union of xyxy boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (a, b)]
    return inner / np.maximum(areas[0][:, None] + areas[1][None, :] - inner, 1e-9)


def _draw_key(figure: Figure, min_score: float, x: float, y: float) -> None:
    entries: dict[str, Any] = {
        "right: class and place (IoU ≥ 0.5)": _RIGHT,
        "wrong, or found twice (dark label)": _WRONG,
        "missed": _MISSED,
    }
    handles = [
        Line2D([], [], color=INK, linestyle=s, linewidth=1.5, label=label) for label, s in entries.items()
    ]
    right = 1 - 0.06 / figure.get_figwidth()
    figure.text(right, y, f"drawn: score ≥ {min_score:.2g}", fontsize=8.5, ha="right", va="bottom")
    draw_key(figure, handles, (x, y), columnspacing=1.6, handlelength=2.6)
