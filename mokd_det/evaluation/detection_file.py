"""Detections in COCO's result format beside the truth they are judged by: read, checked, matched by ids."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mokd_det.data.coco_columns import read_sections, shorten
from mokd_det.data.coco_format import CocoFormatSource
from mokd_det.errors import ConfigError, DatasetError

__all__ = ["Detections", "Truth", "match_ids", "read_detections", "read_truth"]


@dataclass(frozen=True)
class Truth:
    """The annotations of a data set as they stand in its file: boxes are neither clipped nor left out.

    Attributes:
        name: the file, for messages.
        image_names: image id → file name, or the id as text.
        class_names: category id → name.
        image_ids: (N,) int64, of the annotations.
        category_ids: (N,) int64.
        boxes: (N, 4) float64, [x, y, width, height] in pixels.
        crowd: (N,) bool.
    """

    name: str
    image_names: Mapping[int, str]
    class_names: Mapping[int, str]
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray

    def of_images(self, image_ids: Sequence[int]) -> Truth:
        """The part of it that lies in these images."""
        wanted = set(image_ids)
        kept = np.array([image in wanted for image in self.image_ids.tolist()], dtype=bool)
        return replace(
            self,
            image_names={image: name for image, name in self.image_names.items() if image in wanted},
            image_ids=self.image_ids[kept],
            category_ids=self.category_ids[kept],
            boxes=self.boxes[kept],
            crowd=self.crowd[kept],
        )


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


def read_truth(json_file: str | os.PathLike[str], *, hint: str = "") -> Truth:
    """Read the annotations of a file in COCO's detection format; the images themselves are not needed.

    Args:
        json_file: with "images", "categories" and "annotations".
        hint: a sentence for the error about a missing file.

    Raises:
        DatasetError: the file is missing or malformed, an id occurs twice or is unknown, or a box is not four
            finite numbers with sides that are not negative.
    """
    path = os.fspath(json_file)
    content = read_sections(CocoFormatSource(None, path, "", hint=hint))
    images: dict[int, str] = {}
    for number, row in enumerate(content["images"]):
        id_ = _integer(row, "id", f"{path}: image number {number} of the list")
        if id_ in images:
            raise DatasetError(f"{path}: the image id {id_} occurs twice; ids must be unique")
        images[id_] = str(row.get("file_name", id_))
    classes: dict[int, str] = {}
    for number, row in enumerate(content["categories"]):
        id_ = _integer(row, "id", f"{path}: category number {number} of the list")
        if id_ in classes:
            raise DatasetError(f"{path}: the category id {id_} occurs twice; ids must be unique")
        classes[id_] = str(row.get("name", id_))
    owners, categories, boxes, crowd = [], [], [], []
    for number, row in enumerate(content["annotations"]):
        where = f"{path}: annotation number {number} of the list"
        owner, category = _integer(row, "image_id", where), _integer(row, "category_id", where)
        if owner not in images:
            raise DatasetError(f"{where} belongs to image id {owner}, which 'images' lacks")
        if category not in classes:
            raise DatasetError(f"{where} has category_id {category}, which 'categories' lacks")
        owners.append(owner)
        categories.append(category)
        boxes.append(_box(row, where))
        crowd.append(bool(row.get("iscrowd", 0)))
    return Truth(
        path,
        images,
        classes,
        np.array(owners, dtype=np.int64),
        np.array(categories, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(crowd, dtype=bool),
    )


def read_detections(path: str | os.PathLike[str], name: str | None = None) -> Detections:
    """Read a file in COCO's result format: a list of objects with image_id, category_id, bbox and score.

    Args:
        path: the file; an empty list is a legitimate result.
        name: of the detector; None: the file's, without its suffix.

    Raises:
        ConfigError: the file is missing, no JSON, or not in that format; the message names the entry.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"result file {path} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"result file {path} is not valid JSON: {error}") from None
    except OSError as error:
        raise ConfigError(f"result file {path} cannot be read: {error.strerror or error}") from None
    if isinstance(content, dict) and "annotations" in content:
        raise ConfigError(
            f"{path} is an annotation file, not a result file; give it as the truth, and a list of detections here"
        )
    if not isinstance(content, list):
        raise ConfigError(
            f"result file {path}: the top level is a {type(content).__name__}, not a list of detections "
            "{image_id, category_id, bbox: [x, y, width, height], score}"
        )
    images, categories, boxes, scores = [], [], [], []
    for number, row in enumerate(content):
        where = f"result file {path}: detection number {number} of the list"
        images.append(_integer(row, "image_id", where, ConfigError))
        categories.append(_integer(row, "category_id", where, ConfigError))
        boxes.append(_box(row, where, ConfigError))
        score = row.get("score")
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise ConfigError(f"{where} has score={shorten(repr(score))}; must be a finite number")
        scores.append(float(score))
    return Detections(
        path.stem if name is None else name,
        np.array(images, dtype=np.int64),
        np.array(categories, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(scores, dtype=np.float64),
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


def _integer(
    row: Any, key: str, where: str, error: type[ConfigError] | type[DatasetError] = DatasetError
) -> int:
    if not isinstance(row, dict):
        raise error(f"{where} is {shorten(repr(row), 60)}; must be an object")
    if key not in row:
        raise error(f"{where} has no {key!r}")
    if type(row[key]) is not int or abs(row[key]) >= 2**63:
        raise error(f"{where} has {key}={shorten(repr(row[key]), 60)}; must be an integer")
    return row[key]


def _box(
    row: dict[str, Any], where: str, error: type[ConfigError] | type[DatasetError] = DatasetError
) -> list[float]:
    if "bbox" not in row:
        raise error(f"{where} has no 'bbox'; only boxes can be judged here")
    box = row["bbox"]
    numbers = (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in box)
    )
    if not numbers or not all(math.isfinite(value) for value in box) or min(box[2:]) < 0:
        raise error(
            f"{where} has bbox {shorten(repr(box), 80)}; must be [x, y, width, height], finite, width and "
            "height not negative"
        )
    return [float(value) for value in box]
