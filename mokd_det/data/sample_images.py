"""A fair sample of a data set's images, made small for a picture of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mokd_det.data.coco_columns import CocoColumns
from mokd_det.data.image_file import read_image
from mokd_det.errors import DatasetError

__all__ = ["SampleImage", "sample_images"]


@dataclass(frozen=True)
class SampleImage:
    """An image and its annotations, scaled together.

    Attributes:
        file_name: relative to the image root.
        size_wh: width and height that the annotations say.
        pixels: uint8 (H, W, 3) RGB; None if the file cannot be decoded.
        boxes: (N, 4) absolute xyxy in ``pixels``.
        classes: (N,) contiguous class indices.
        crowd: (N,) bool.
    """

    file_name: str
    image_id: int
    size_wh: tuple[int, int]
    pixels: np.ndarray | None
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray


def sample_images(
    columns: CocoColumns, image_root: str, count: int, *, seed: int, max_side: int = 512
) -> Iterator[SampleImage]:
    """Images drawn uniformly without replacement, those without boxes and broken ones included.

    Args:
        columns: the data set.
        image_root: folder that file names are shown relative to.
        count: images; all of them, if there are fewer.
        max_side: larger images are reduced to it, pixels.
    """
    total = len(columns.image_ids)
    rows = np.random.default_rng(seed).choice(total, size=min(count, total), replace=False)
    # Images are few and annotations many: one pass for all.
    wanted = np.isin(columns.image_rows, rows)
    owners, boxes = columns.image_rows[wanted], columns.boxes[wanted]
    classes, crowd = columns.classes[wanted], columns.crowd[wanted]
    for row in rows.tolist():
        mine = owners == row
        width, height = columns.sizes_wh[row].tolist()
        file_name = columns.file_names[row]
        try:
            pixels = _reduced(read_image(file_name, file_name), max_side)
            scale = np.tile([pixels.shape[1] / width, pixels.shape[0] / height], 2)
        except DatasetError:
            pixels, scale = None, np.ones(4)
        yield SampleImage(
            os.path.relpath(file_name, image_root),
            int(columns.image_ids[row]),
            (width, height),
            pixels,
            boxes[mine] * scale,
            classes[mine],
            crowd[mine],
        )


def _reduced(image: np.ndarray, max_side: int) -> np.ndarray:
    height, width = image.shape[:2]
    ratio = max_side / max(height, width)
    if ratio >= 1:
        return image
    size = max(round(width * ratio), 1), max(round(height * ratio), 1)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
