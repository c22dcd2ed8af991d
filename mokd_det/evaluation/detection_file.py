"""Detections in COCO's result format: written as they come; read, checked and matched by ids with the truth."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.data.checked_rows import CheckedRows, shorten
from mokd_det.data.coco_columns import read_json
from mokd_det.data.findings import RaiseFirst
from mokd_det.data.truth import Truth
from mokd_det.errors import ConfigError, DatasetError

__all__ = ["Detections", "ResultWriter", "match_ids", "read_detections", "result_file"]


@dataclass(frozen=True)
class Detections:
    """What a detector found.

    Attributes:
        name: the detector, for people.
        image_ids, category_ids: (N,) int64, as in the data set's file.
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
    """The detections that can be judged by the truth; how many were left out for images or categories that it does not
    have.

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
    columns = {
        name: getattr(detections, name)[known] for name in ("image_ids", "category_ids", "boxes", "scores")
    }
    return replace(detections, **columns), int((~known).sum())


class ResultWriter:
    """Adds detections to an open file; see :func:`result_file`.

    Attributes:
        count: detections written.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.count = 0

    def add(self, image_id: int, category_id: int, box: Sequence[float], score: float) -> None:
        """Write one detection, its box xyxy in pixels of the original image."""
        x0, y0, x1, y1 = box
        xywh = [x0, y0, x1 - x0, y1 - y0]
        entry = {"image_id": image_id, "category_id": category_id, "bbox": xywh, "score": score}
        self._file.write((",\n" if self.count else "\n") + json.dumps(entry, allow_nan=False))
        self.count += 1


@contextmanager
def result_file(path: str | os.PathLike[str]) -> Iterator[ResultWriter]:
    """A file in COCO's result format, ``[{"image_id", "category_id", "bbox": [x, y, width, height], "score"}, …]``.

    It appears under its name, complete, when the block ends well; nothing is kept in memory.
    """
    with atomic_write(path, "w") as file:
        file.write("[")
        yield ResultWriter(file)
        file.write("\n]\n")
