"""Detections in COCO's result format beside the truth they are judged by: read, checked, matched by ids."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mokd_det.data.checked_rows import CheckedRows, shorten
from mokd_det.data.coco_columns import read_json
from mokd_det.data.findings import RaiseFirst
from mokd_det.data.truth import Truth
from mokd_det.errors import ConfigError, DatasetError

__all__ = ["Detections", "match_ids", "read_detections"]


@dataclass(frozen=True)
class Detections:
    """What a detector found.

    Attributes:
        name: the detector, for people.
        image_ids: (N,) int64.
        category_ids: (N,) int64, of the data set's file.
        boxes: (N, 4) float64, [x, y, width, height] in pixels.
        scores: (N,) float64.
    """

    name: str
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def read_detections(path: str | os.PathLike[str], name: str | None = None) -> Detections:
    """Read a file in COCO's result format: a list of objects with image_id, category_id, bbox and score.

    Args:
        path: the file; an empty list is a legitimate result.
        name: of the detector; None: the file's, without its suffix.

    Raises:
        DatasetError: the file is missing, no JSON, or not in that format; the message names the entry.
    """
    path = Path(path)
    content = read_json(str(path), "result file")
    if isinstance(content, dict) and "annotations" in content:
        raise DatasetError(
            f"{path} is an annotation file, not a result file; give it as the truth, and a list of detections here"
        )
    if not isinstance(content, list):
        raise DatasetError(
            f"result file {path}: the top level is a {type(content).__name__}, not a list of detections "
            "{image_id, category_id, bbox: [x, y, width, height], score}"
        )
    rows = CheckedRows(content, "detection", f"result file {path}", RaiseFirst())
    boxes = rows.boxes("bbox")
    rows.reject(
        np.any(boxes[:, 2:] < 0, axis=1),
        "negative-size",
        lambda i: f"{rows.label(i)} has bbox {boxes[i].tolist()}; width and height must not be negative",
    )
    return Detections(
        path.stem if name is None else name,
        rows.ints("image_id"),
        rows.ints("category_id"),
        boxes,
        rows.numbers("score"),
    )


def match_ids(detections: Detections, truth: Truth, *, drop_unknown: bool = False) -> tuple[Detections, int]:
    """Compare the ids of detections with those of the truth.

    Args:
        detections: of one detector.
        truth: what they are judged by.
        drop_unknown: leave out detections of images and categories that the truth does not have.

    Returns:
        The detections that can be judged; how many were left out.

    Raises:
        ConfigError: an id that the truth does not have, unless it may be dropped.
    """
    known = np.ones(len(detections.image_ids), dtype=bool)
    for what, ids, there in (
        ("image", detections.image_ids, truth.image_names),
        ("category", detections.category_ids, truth.class_names),
    ):
        unknown = sorted(set(ids.tolist()) - set(there))
        if not unknown:
            continue
        rows = np.isin(ids, unknown)
        if not drop_unknown:
            more = f" and {len(unknown) - 1} other unknown ids" if len(unknown) > 1 else ""
            raise ConfigError(
                f"{detections.name}: {int(rows.sum())} detections are of {what} id {unknown[0]}{more}, which "
                f"{truth.name} does not have (it has {shorten(sorted(there), 80)}); give the annotations that "
                "the detections belong to, or drop these detections with --drop-unknown"
            )
        known &= ~rows
    kept = replace(
        detections,
        image_ids=detections.image_ids[known],
        category_ids=detections.category_ids[known],
        boxes=detections.boxes[known],
        scores=detections.scores[known],
    )
    return kept, int((~known).sum())
