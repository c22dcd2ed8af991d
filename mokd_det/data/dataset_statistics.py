"""How many, how large, of which class: a data set in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mokd_det.data.coco_columns import CocoColumns

__all__ = ["ClassCount", "DatasetStatistics", "Spread", "dataset_statistics"]

_SMALL, _LARGE = 32.0**2, 96.0**2
_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_SIZES_SHOWN = 5


@dataclass(frozen=True)
class Spread:
    """Quantiles of a quantity; all None if there is nothing to measure."""

    min: float | None
    p5: float | None
    median: float | None
    p95: float | None
    max: float | None

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        if not len(values):
            return cls(None, None, None, None, None)
        return cls(*(float(value) for value in np.quantile(values, _QUANTILES)))


@dataclass(frozen=True)
class ClassCount:
    """One category by the file's id: its boxes without crowds, images that have one, and crowd annotations."""

    id: int
    name: str
    boxes: int
    images: int
    crowds: int


@dataclass(frozen=True)
class DatasetStatistics:
    """Numbers about the usable entries of a data set; sizes are in pixels of the original images.

    Attributes:
        images_without_boxes: those that train as background.
        boxes: objects, without crowds.
        classes: by ascending category id.
        image_sizes: the most frequent ones, ((width, height), images).
        image_aspect, box_aspect: width / height.
        boxes_per_image: of all images.
        box_share: box area / image area.
        small, medium, large: shares of the boxes by area, in COCO's sense (below 32², up to 96², above).
    """

    images: int
    images_without_boxes: int
    boxes: int
    crowds: int
    classes: list[ClassCount]
    image_sizes: list[tuple[tuple[int, int], int]]
    distinct_image_sizes: int
    image_width: Spread
    image_height: Spread
    image_aspect: Spread
    boxes_per_image: Spread
    box_width: Spread
    box_height: Spread
    box_aspect: Spread
    box_share: Spread
    small: float | None
    medium: float | None
    large: float | None


def dataset_statistics(columns: CocoColumns) -> DatasetStatistics:
    """Count and measure the usable entries of a data set."""
    num_images, num_classes = len(columns.image_ids), len(columns.category_ids)
    objects = ~columns.crowd
    rows, classes = columns.image_rows[objects], columns.classes[objects]
    sides = columns.boxes[objects, 2:] - columns.boxes[objects, :2]
    areas = sides.prod(axis=1)
    per_image = np.bincount(rows, minlength=num_images)
    boxes = np.bincount(classes, minlength=num_classes)
    crowds = np.bincount(columns.classes[columns.crowd], minlength=num_classes)
    with_class = np.bincount(
        np.unique(rows * num_classes + classes) % max(num_classes, 1), minlength=num_classes
    )
    sizes = columns.sizes_wh.astype(np.float64)
    distinct, counts = np.unique(columns.sizes_wh, axis=0, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:_SIZES_SHOWN]
    small, large = (float(np.mean(part)) if len(areas) else None for part in (areas < _SMALL, areas > _LARGE))
    return DatasetStatistics(
        images=num_images,
        images_without_boxes=int(np.count_nonzero(per_image == 0)),
        boxes=len(rows),
        crowds=int(np.count_nonzero(columns.crowd)),
        classes=[
            ClassCount(int(id_), name, int(boxes[i]), int(with_class[i]), int(crowds[i]))
            for i, (id_, name) in enumerate(zip(columns.category_ids, columns.category_names, strict=True))
        ],
        image_sizes=[((int(distinct[i, 0]), int(distinct[i, 1])), int(counts[i])) for i in frequent],
        distinct_image_sizes=len(distinct),
        image_width=Spread.of(sizes[:, 0]),
        image_height=Spread.of(sizes[:, 1]),
        image_aspect=Spread.of(sizes[:, 0] / sizes[:, 1]),
        boxes_per_image=Spread.of(per_image),
        box_width=Spread.of(sides[:, 0]),
        box_height=Spread.of(sides[:, 1]),
        box_aspect=Spread.of(sides[:, 0] / sides[:, 1]),
        box_share=Spread.of(areas / sizes[rows].prod(axis=1)),
        small=small,
        medium=None if small is None or large is None else 1.0 - small - large,
        large=large,
    )
