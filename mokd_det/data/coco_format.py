"""COCO-format object detection data by name: read once, check everything, name what is wrong.

All checks (:mod:`mokd_det.data.coco_columns`) happen before training starts: an error in the last image does
not wait for the end of the first epoch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from mokd_det.data.checked_rows import shorten
from mokd_det.data.coco_columns import CocoColumns, read_categories, read_columns, read_sections
from mokd_det.data.coco_source import BadBoxPolicy, CocoFormatSource
from mokd_det.data.findings import RaiseFirst
from mokd_det.errors import DatasetError

__all__ = ["load_coco_format", "publish_categories", "read_checked", "read_classes", "register_coco_format"]


class _RegisteredCoco(CocoFormatSource):
    """What stands in Detectron2's catalog: a source that loads itself."""

    def __call__(self) -> list[dict[str, Any]]:
        return load_coco_format(self)


def register_coco_format(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    on_bad_box: BadBoxPolicy = "error",
    has_annotations: bool = True,
    thing_classes: Sequence[str] | None = None,
    hint: str = "",
) -> None:
    """Make a COCO-format data set known to Detectron2 under ``name``.

    Nothing is read before the data set is used; then the class names and the mapping from the file's category
    ids (any integers) to contiguous class indices are taken from the file.

    Args:
        name: new name in ``DatasetCatalog`` and ``MetadataCatalog``.
        json_file, image_root, on_bad_box, has_annotations, hint: see :class:`CocoFormatSource`.
        thing_classes: the class names that the file must have, in the order of their ids, known beforehand.

    Raises:
        DatasetError: the name is taken by another data set.
        ConfigError: unknown ``on_bad_box``.
    """
    source = _RegisteredCoco(
        name, os.fspath(json_file), os.fspath(image_root), on_bad_box, has_annotations, hint=hint
    )
    if name in DatasetCatalog:
        if DatasetCatalog[name] == source:
            return
        raise DatasetError(f"the data set name {name!r} is already registered with other files or settings")
    DatasetCatalog.register(name, source)
    metadata = MetadataCatalog.get(name)
    metadata.set(json_file=source.json_file, image_root=source.image_root, evaluator_type="coco")
    if thing_classes is not None:
        metadata.thing_classes = list(thing_classes)


def load_coco_format(source: CocoFormatSource) -> list[dict[str, Any]]:
    """Read and check a COCO-format file.

    Boxes are clipped to their image (with a warning if one reaches out by more than a pixel). A box that has
    no area left, or a size that is not positive, follows ``source.on_bad_box``; one that is not finite is
    always an error. Images without boxes stay. Crowd annotations stay too, marked ``iscrowd``: the mapper
    keeps them from training, the evaluation knows them. Only boxes are read: no masks, no key points.

    Returns:
        Detectron2's standard dicts, by ascending image id: ``file_name``, ``image_id``, ``height``, ``width``
        and, unless the source has no annotations, ``annotations`` with ``bbox`` (absolute xyxy),
        ``bbox_mode``, ``category_id`` (contiguous, by ascending id of the file) and ``iscrowd``.

    Raises:
        DatasetError: anything in the file that cannot be used, by file and id.
    """
    columns = read_checked(source)
    records: list[dict[str, Any]] = [
        {"file_name": file_name, "image_id": image_id, "height": height, "width": width}
        for file_name, image_id, (width, height) in zip(
            columns.file_names, columns.image_ids.tolist(), columns.sizes_wh.tolist(), strict=True
        )
    ]
    if source.has_annotations:
        for record in records:
            record["annotations"] = []
        for row, box, category, crowd in zip(
            columns.image_rows.tolist(),
            columns.boxes.tolist(),
            columns.classes.tolist(),
            columns.crowd.astype(np.int64).tolist(),
        ):
            annotation = {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": category,
                "iscrowd": crowd,
            }
            records[row]["annotations"].append(annotation)
    return records


def read_checked(source: CocoFormatSource, *, warn: bool = True) -> CocoColumns:
    """The file's columns, all of them usable; the classes go into the metadata of a source with a name. ``warn`` is off
    where a loader of the same file has warned already.

    Raises:
        DatasetError: anything in the file that cannot be used, by file and id.
    """
    columns = read_columns(source, RaiseFirst(warn))
    if source.name is not None:
        _publish(source.name, source.json_file, columns.category_ids, columns.category_names)
    return columns


def read_classes(json_file: str, hint: str = "") -> tuple[np.ndarray, list[str], int]:
    """Classes of a COCO-format file, and how much it lists, without a look at annotations or image files.

    Returns:
        Category ids, ascending (C,); their names; the number of images.

    Raises:
        DatasetError: the file is missing, not in COCO format, or its categories cannot be used.
    """
    content = read_sections(CocoFormatSource(None, json_file, None, has_annotations=False, hint=hint))
    ids, names = read_categories(content["categories"], json_file, RaiseFirst())
    return ids, names, len(content["images"])


def publish_categories(name: str, json_file: str, hint: str = "") -> None:
    """Put the classes of a COCO-format file into the metadata of the data set ``name``, without loading the rest.

    Raises:
        DatasetError: the file is missing, not in COCO format, or has other classes than the metadata already
            says.
    """
    ids, names, _ = read_classes(json_file, hint)
    _publish(name, json_file, ids, names)


def _publish(name: str, path: str, ids: np.ndarray, names: list[str]) -> None:
    metadata = MetadataCatalog.get(name)
    found = {
        "thing_classes": names,
        "thing_dataset_id_to_contiguous_id": {int(id_): index for index, id_ in enumerate(ids)},
    }
    for key, value in found.items():
        known = metadata.get(key)
        if known is not None and known != value:
            raise DatasetError(
                f"{path}: its categories give {key}={shorten(value)}, but the data set {name!r} is known "
                f"with {shorten(known)}"
            )
    metadata.set(**found)
