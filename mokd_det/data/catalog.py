"""Data sets by name: from Detectron2's catalog to checked standard dicts."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import _PREDEFINED_SPLITS_COCO

from mokd_det.data.boxes import annotation_boxes, clip_boxes
from mokd_det.data.coco_format import load_coco_format, publish_categories
from mokd_det.data.coco_source import CocoFormatSource
from mokd_det.errors import DatasetError

__all__ = [
    "check_dataset_dicts",
    "coco_source",
    "has_boxes",
    "load_classes",
    "load_dataset_dicts",
    "without_classes",
]

logger = logging.getLogger(__name__)

_COCO_SPLITS = frozenset(_PREDEFINED_SPLITS_COCO["coco"])

_COCO_HINT = (
    "download COCO and point the environment variable DETECTRON2_DATASETS at the folder that holds coco/"
)


def load_dataset_dicts(names: str | Sequence[str], *, filter_empty: bool = False) -> list[dict[str, Any]]:
    """Detectron2's standard dicts of registered data sets, one after the other, with all checks.

    COCO's own splits keep Detectron2's registration and metadata (80 contiguous classes), but are read with
    the checks of :func:`mokd_det.data.coco_format.load_coco_format`; the few boxes without area in COCO's
    files are left out, as DETR and ViDT do.

    Args:
        names: one name or several whose classes are equal.
        filter_empty: leave out images without a box that is no crowd. Off: they train as background.

    Raises:
        DatasetError: unknown name, classes that differ between the data sets, no image left, or anything in
            the files that cannot be used.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise DatasetError("no data set name given")
    records: list[dict[str, Any]] = []
    for name in names:
        loaded = _load(name)
        if filter_empty:
            loaded = [record for record in loaded if has_boxes(record)]
        if not loaded:
            raise DatasetError(f"data set {name!r} has no image{' with boxes' if filter_empty else ''}")
        counts = [len(record.get("annotations", ())) for record in loaded]
        logger.info(
            "data set %s: %d images, %d without boxes, %d boxes",
            name,
            len(loaded),
            counts.count(0),
            sum(counts),
        )
        records.extend(loaded)
    _check_same_classes(names)
    return records


def without_classes(dataset: str) -> list[dict[str, Any]]:
    """A data set with all boxes of class 0: to pretrain a detector that finds objects without telling them apart.

    Raises:
        DatasetError: see :func:`load_dataset_dicts`.
    """
    return [
        {**record, "annotations": [{**box, "category_id": 0} for box in record["annotations"]]}
        for record in load_dataset_dicts(dataset)
    ]


def has_boxes(record: dict[str, Any]) -> bool:
    """Whether a standard dict has a box that is no crowd."""
    return any(not annotation.get("iscrowd", 0) for annotation in record.get("annotations", ()))


def check_dataset_dicts(records: Sequence[dict[str, Any]], name: str) -> None:
    """Check Detectron2's standard dicts that another loader made of a data set; boxes may be absolute xyxy or xywh.

    Raises:
        DatasetError: a missing key, an unknown class, or a box that is not finite or has no area inside its
            image.
    """
    num_classes = len(MetadataCatalog.get(name).get("thing_classes", ())) or math.inf
    for row, record in enumerate(records):
        where = f"data set {name!r}, image id {record.get('image_id', f'(number {row})')}"
        for key in ("file_name", "image_id", "height", "width"):
            if key not in record:
                raise DatasetError(f"{where}: the record has no {key!r}")
        annotations = record.get("annotations", ())
        for annotation in annotations:
            category = annotation.get("category_id")
            if not isinstance(category, (int, np.integer)) or not 0 <= category < num_classes:
                raise DatasetError(f"{where}: category_id {category!r} is not in 0 ... {num_classes - 1}")
        try:
            boxes = annotation_boxes(annotations)
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{where}: boxes must be four numbers with bbox_mode XYXY_ABS or XYWH_ABS: {error}"
            ) from None
        width, height = record["width"], record["height"]
        good = (
            np.isfinite(boxes).all(axis=1) & clip_boxes(boxes, np.tile((width, height), (len(boxes), 1)))[1]
        )
        if not good.all():
            raise DatasetError(
                f"{where} ({record['file_name']}): the box {boxes[np.argmin(good)].tolist()} (xyxy) has no "
                f"area inside the image of width {width} and height {height}; correct the data, or register "
                "it with mokd_det.data.register_coco_format(..., on_bad_box='drop')"
            )


def load_classes(name: str) -> None:
    """Make sure that the metadata of a COCO-format data set has its classes, without loading the rest of it.

    Raises:
        DatasetError: unknown name, or an annotation file that is missing, unreadable or has other classes
            than the metadata already says.
    """
    _require_registered(name)
    json_file = MetadataCatalog.get(name).get("json_file")
    if json_file is not None:
        source = DatasetCatalog[name]
        hint = source.hint if isinstance(source, CocoFormatSource) else ""
        publish_categories(name, json_file, _COCO_HINT if name in _COCO_SPLITS else hint)


def _require_registered(name: str) -> None:
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        suggestion = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise DatasetError(f"unknown data set {name!r}{suggestion}")


def coco_source(name: str) -> CocoFormatSource | None:
    """Where a registered data set lies and how it is read; None for one that another loader makes.

    Raises:
        DatasetError: unknown name.
    """
    _require_registered(name)
    if name in _COCO_SPLITS:
        metadata = MetadataCatalog.get(name)
        return CocoFormatSource(
            name,
            metadata.json_file,
            metadata.image_root,
            on_bad_box="drop",
            has_annotations="image_info" not in metadata.json_file,
            # COCO 2014's (valminus)minival files are known to repeat ids
            unique_annotation_ids="minival" not in name,
            hint=_COCO_HINT,
        )
    source = DatasetCatalog[name]
    return source if isinstance(source, CocoFormatSource) else None


def _load(name: str) -> list[dict[str, Any]]:
    source = coco_source(name)
    if source is not None:
        return load_coco_format(source)
    try:
        records = DatasetCatalog.get(name)
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(f"data set {name!r}: {error}") from error
    except (ValueError, KeyError, AssertionError) as error:
        raise DatasetError(f"data set {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    check_dataset_dicts(records, name)
    return records


def _check_same_classes(names: Sequence[str]) -> None:
    first = MetadataCatalog.get(names[0]).get("thing_classes")
    for name in names[1:]:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes != first:
            raise DatasetError(
                f"data sets {names[0]!r} and {name!r} cannot be joined: their classes differ "
                f"({len(first or ())} and {len(classes or ())} names)"
            )
