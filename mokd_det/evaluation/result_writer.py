"""Detections in COCO's result format, written as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from mokd_det.checkpoint.atomic_file import atomic_write

__all__ = ["ResultWriter", "result_file"]


class ResultWriter:
    """Adds detections to an open file; see :func:`result_file`.

    Attributes:
        count: detections written.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.count = 0

    def add(self, image_id: int, category_id: int, box: Sequence[float], score: float) -> None:
        """Write one detection.

        Args:
            image_id, category_id: as in the annotation file.
            box: xyxy in pixels of the original image.
            score: in [0, 1].
        """
        x0, y0, x1, y1 = box
        entry = {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
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
