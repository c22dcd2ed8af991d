"""Boxes of many annotations at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

__all__ = ["annotation_boxes", "clip_boxes"]


def annotation_boxes(annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Boxes of Detectron2's standard annotations, of mode XYXY_ABS or XYWH_ABS, as (N, 4) float64, absolute xyxy.

    Raises:
        ValueError: another mode, or boxes that are not four numbers.
    """
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    if len(boxes) != len(annotations):
        raise ValueError("a box is not four numbers")
    # IntEnum to int: numpy compares whole columns of integers, and a plain number is a legal mode too
    modes = np.array([int(annotation["bbox_mode"]) for annotation in annotations], dtype=np.int64)
    sized = modes == BoxMode.XYWH_ABS
    if not (sized | (modes == BoxMode.XYXY_ABS)).all():
        raise ValueError("a box is neither XYXY_ABS nor XYWH_ABS")
    boxes[sized, 2:] += boxes[sized, :2]
    return boxes


def clip_boxes(boxes_xyxy: np.ndarray, sizes_wh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes (N, 4) to their images, whose width and height are (N, 2), and tell which have area left, (N,) bool: a
    box given with a negative size has none, wherever it lies."""
    limits = np.tile(sizes_wh, 2).astype(boxes_xyxy.dtype)
    clipped = np.clip(boxes_xyxy, 0, limits)
    return clipped, np.all(clipped[:, 2:] > clipped[:, :2], axis=1)
