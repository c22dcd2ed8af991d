"""COCO-format object detection data: read once, check everything, name what is wrong.

The checks run over whole columns of the file (numpy), so a file with millions of boxes costs seconds, and
every one of them happens before training starts: an error in the last image does not wait for the end of the
    first epoch.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from mokd_det.data.boxes import clip_boxes
from mokd_det.errors import ConfigError, DatasetError

__all__ = [
    "BadBoxPolicy",
    "CocoFormatSource",
    "load_coco_format",
    "publish_categories",
    "register_coco_format",
]

logger = logging.getLogger(__name__)

BadBoxPolicy = Literal["error", "drop"]

# Annotation tools round to whole pixels and count the last one differently, so one pixel beyond the border is
# common.
_ROUNDING_SLACK_PX = 1.0


@dataclass(frozen=True)
class CocoFormatSource:
    """Where a COCO-format data set lies and how it is read; calling it loads the data set.

    Attributes:
        name: the data set's name in Detectron2's catalogs; None: the metadata is left alone.
        json_file: annotations in COCO's detection format.
        image_root: folder that the file's ``file_name`` entries are relative to.
        on_bad_box: what happens to a box without area inside its image: "error" names it, "drop" leaves it
            out.
        has_annotations: False for files that list images only (COCO's test sets).
        unique_annotation_ids: False tolerates repeated annotation ids.
        hint: a sentence for the error about a missing file: how to get the data.
    """

    name: str | None
    json_file: str
    image_root: str
    on_bad_box: BadBoxPolicy = "error"
    has_annotations: bool = True
    unique_annotation_ids: bool = True
    hint: str = ""

    def __post_init__(self) -> None:
        if self.on_bad_box not in ("error", "drop"):
            raise ConfigError(f"on_bad_box={self.on_bad_box!r}: must be 'error' or 'drop'")

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
        json_file: annotations in COCO's detection format.
        image_root: folder of the images.
        on_bad_box: see :class:`CocoFormatSource`.
        has_annotations: False for files that list images only.
        thing_classes: the class names that the file must have, in the order of their ids, known beforehand.
        hint: a sentence for the error about a missing file.

    Raises:
        DatasetError: the name is taken by another data set.
        ConfigError: unknown ``on_bad_box``.
    """
    source = CocoFormatSource(
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
    keeps them from training, the evaluator reads them from the file. Only boxes are read: no masks, no key
    points.

    Returns:
        Detectron2's standard dicts, by ascending image id: ``file_name``, ``image_id``, ``height``, ``width``
        and, unless the source has no annotations, ``annotations`` with ``bbox`` (absolute xyxy),
        ``bbox_mode``, ``category_id`` (contiguous, by ascending id of the file) and ``iscrowd``.

    Raises:
        DatasetError: anything in the file that cannot be used, by file and id.
    """
    content = _read_sections(source)
    path = source.json_file
    categories, images = content["categories"], content["images"]

    category_ids, names = _read_categories(categories, path)
    if source.name is not None:
        _publish(source.name, path, category_ids, names)

    image_ids = _unique_ints(images, "id", "image", path)
    heights, widths = (_ints(images, key, "image", path) for key in ("height", "width"))
    for key, sizes in (("height", heights), ("width", widths)):
        if (wrong := np.flatnonzero(sizes <= 0)).size:
            raise DatasetError(
                f"{path}: image id {image_ids[wrong[0]]} has {key} {sizes[wrong[0]]}; must be > 0"
            )
    file_names = [os.path.join(source.image_root, f) for f in _strings(images, "file_name", "image", path)]
    _check_image_files(file_names, image_ids, path)

    order = np.argsort(image_ids)
    records: list[dict[str, Any]] = [
        {
            "file_name": file_names[i],
            "image_id": int(image_ids[i]),
            "height": int(heights[i]),
            "width": int(widths[i]),
        }
        for i in order
    ]
    if source.has_annotations:
        sizes_wh = np.stack([widths[order], heights[order]], axis=1)
        _attach_annotations(records, content["annotations"], image_ids[order], sizes_wh, category_ids, source)
    return records


def publish_categories(name: str, json_file: str, hint: str = "") -> None:
    """Put the classes of a COCO-format file into the metadata of the data set ``name``, without loading the
    rest.

    Raises:
        DatasetError: the file is missing, not in COCO format, or has other classes than the metadata already
            says.
    """
    content = _read_sections(CocoFormatSource(name, json_file, "", has_annotations=False, hint=hint))
    _publish(name, json_file, *_read_categories(content["categories"], json_file))


def _read_json(json_file: str, hint: str = "") -> Any:
    """Content of a JSON file.

    Raises:
        DatasetError: the file is missing (followed by ``hint``), unreadable or not JSON.
    """
    try:
        with PathManager.open(json_file, "rb") as file:
            return json.load(file)
    except FileNotFoundError:
        raise DatasetError(f"data set file {json_file} does not exist{f'; {hint}' if hint else ''}") from None
    except ValueError as error:
        raise DatasetError(f"data set file {json_file} is not valid JSON: {error}") from None
    except OSError as error:
        raise DatasetError(f"data set file {json_file} cannot be read: {error.strerror or error}") from None


def _read_sections(source: CocoFormatSource) -> dict[str, list[Any]]:
    content = _read_json(source.json_file, source.hint)
    if not isinstance(content, dict):
        raise DatasetError(
            f"{source.json_file}: the top level is a {type(content).__name__}, not an object with 'images', "
            "'categories' and 'annotations'"
        )
    needed = ["images", "categories"] + (["annotations"] if source.has_annotations else [])
    for key in needed:
        if key not in content:
            raise DatasetError(f"{source.json_file}: the key {key!r} is missing; COCO format needs {needed}")
        if not isinstance(content[key], list):
            raise DatasetError(f"{source.json_file}: {key!r} is a {type(content[key]).__name__}, not a list")
    for key in ("images", "categories"):
        if not content[key]:
            raise DatasetError(f"{source.json_file}: {key!r} is empty")
    return {key: content[key] for key in needed}


def _read_categories(categories: list[Any], path: str) -> tuple[np.ndarray, list[str]]:
    """Ids, ascending, and their names."""
    ids = _unique_ints(categories, "id", "category", path)
    names = _strings(categories, "name", "category", path)
    order = np.argsort(ids)
    names = [names[i] for i in order]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"{path}: the category name {twice!r} occurs twice; class names must be distinct")
    return ids[order], names


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
                f"{path}: its categories give {key}={_shorten(value)}, but the data set {name!r} is known "
                f"with {_shorten(known)}"
            )
    metadata.set(**found)


def _attach_annotations(
    records: list[dict[str, Any]],
    annotations: list[Any],
    image_ids: np.ndarray,
    sizes_wh: np.ndarray,
    category_ids: np.ndarray,
    source: CocoFormatSource,
) -> None:
    """Give each record its checked ``annotations``; ``image_ids`` and ``sizes_wh`` follow the records."""
    path = source.json_file
    ids = (_unique_ints if source.unique_annotation_ids else _ints)(annotations, "id", "annotation", path)
    owners = _ints(annotations, "image_id", "annotation", path)
    rows, known = _find(owners, image_ids)
    if not known.all():
        i = int(np.argmin(known))
        raise DatasetError(
            f"{path}: annotation id {ids[i]} belongs to image id {owners[i]}, which 'images' lacks"
        )
    labels = _ints(annotations, "category_id", "annotation", path)
    classes, known = _find(labels, category_ids)
    if not known.all():
        i = int(np.argmin(known))
        raise DatasetError(
            f"{path}: annotation id {ids[i]} (image id {owners[i]}) has category_id {labels[i]}, which is "
            f"not in 'categories' ({_shorten(category_ids.tolist())})"
        )
    boxes = _boxes(annotations, ids, path)
    boxes[:, 2:] += boxes[:, :2]
    sizes = sizes_wh[rows]
    clipped, good = clip_boxes(boxes, sizes)
    if not good.all():
        i = int(np.argmin(good))
        others = np.count_nonzero(~good) - 1
        message = (
            f"{path}: annotation id {ids[i]} of image id {owners[i]} ({records[rows[i]]['file_name']}) has "
            f"bbox {annotations[i]['bbox']}, which has no area inside the image of width {sizes[i, 0]} and "
            f"height {sizes[i, 1]}{f' (and {others} more like it)' if others else ''}"
        )
        if source.on_bad_box == "error":
            raise DatasetError(f"{message}; correct the file or register the data set with on_bad_box='drop'")
        logger.warning("%s: left out", message)
    outside = good & (np.abs(clipped - boxes).max(axis=1, initial=0.0) > _ROUNDING_SLACK_PX)
    if outside.any():
        logger.warning(
            "%s: %d boxes reach out of their image and were clipped, the first is annotation id %s",
            path,
            np.count_nonzero(outside),
            ids[np.argmax(outside)],
        )

    kept = np.flatnonzero(good)
    kept = kept[np.argsort(rows[kept], kind="stable")]
    ends = np.searchsorted(rows[kept], np.arange(len(records)), side="right").tolist()
    box_list, class_list = clipped[kept].tolist(), classes[kept].tolist()
    crowd = _crowd_flags(annotations, ids, path)[kept].tolist()
    start = 0
    for record, end in zip(records, ends, strict=True):
        record["annotations"] = [
            {
                "bbox": box_list[i],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": class_list[i],
                "iscrowd": crowd[i],
            }
            for i in range(start, end)
        ]
        start = end


def _check_image_files(file_names: Sequence[str], image_ids: np.ndarray, path: str) -> None:
    # One listing per folder instead of one lookup per image: on network file systems the latter takes
    # minutes.
    listings: dict[str, frozenset[str]] = {}
    for file_name, image_id in zip(file_names, image_ids, strict=True):
        folder, base = os.path.split(file_name)
        if folder not in listings:
            try:
                listings[folder] = frozenset(PathManager.ls(folder or "."))
            except OSError as error:
                raise DatasetError(
                    f"image folder {folder} (of image id {image_id} in {path}) cannot be read: "
                    f"{error.strerror or error}"
                ) from None
        if base not in listings[folder]:
            raise DatasetError(f"image file {file_name} (image id {image_id} in {path}) does not exist")


def _find(values: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of ``values`` in ``ascending``, and which of them really occur there."""
    positions = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return positions, ascending[positions] == values


def _boxes(annotations: list[Any], ids: np.ndarray, path: str) -> np.ndarray:
    """The ``bbox`` column as float64 (N, 4), xywh, finite."""
    values = _column(annotations, "bbox", "annotation", path)
    if not values:
        return np.zeros((0, 4))
    try:
        boxes = np.asarray(values)
    except ValueError:
        boxes = np.zeros(0)
    # Checked by the resulting dtype: asking for floats would turn the string "12" into a number without a
    # word.
    if boxes.shape != (len(values), 4) or boxes.dtype.kind not in "iuf":
        i = next(i for i, box in enumerate(values) if not _is_box(box))
        raise DatasetError(
            f"{path}: annotation id {ids[i]} has bbox {values[i]!r}; must be four numbers [x, y, w, h]"
        )
    boxes = boxes.astype(np.float64)
    finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        i = int(np.argmin(finite))
        raise DatasetError(f"{path}: annotation id {ids[i]} has bbox {values[i]}; its numbers must be finite")
    return boxes


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(type(v) is float or (type(v) is int and abs(v) < 2**63) for v in value)


def _crowd_flags(annotations: list[Any], ids: np.ndarray, path: str) -> np.ndarray:
    """The optional ``iscrowd`` column, (N,) int64 of 0 and 1."""
    flags = [annotation.get("iscrowd", 0) for annotation in annotations]
    for i, flag in enumerate(flags):
        if flag not in (0, 1):
            raise DatasetError(f"{path}: annotation id {ids[i]} has iscrowd={flag!r}; must be 0 or 1")
    return np.array(flags, dtype=np.int64)


def _unique_ints(rows: list[Any], key: str, what: str, path: str) -> np.ndarray:
    values = _ints(rows, key, what, path)
    unique, counts = np.unique(values, return_counts=True)
    if (counts > 1).any():
        raise DatasetError(
            f"{path}: the {what} id {unique[np.argmax(counts > 1)]} occurs twice; ids must be unique"
        )
    return values


def _ints(rows: list[Any], key: str, what: str, path: str) -> np.ndarray:
    values = _column(rows, key, what, path)
    if not values:
        return np.zeros(0, dtype=np.int64)
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.zeros(0)
    # Checked by the resulting dtype, see _boxes
    if array.ndim != 1 or array.dtype.kind != "i":
        i = next(i for i, value in enumerate(values) if type(value) is not int or abs(value) >= 2**63)
        raise DatasetError(f"{path}: {_label(rows, i, what)} has {key}={values[i]!r}; must be an integer")
    return array


def _strings(rows: list[Any], key: str, what: str, path: str) -> list[str]:
    values = _column(rows, key, what, path)
    for i, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise DatasetError(
                f"{path}: {_label(rows, i, what)} has {key}={value!r}; must be a non-empty string"
            )
    return values


def _column(rows: list[Any], key: str, what: str, path: str) -> list[Any]:
    try:
        return [row[key] for row in rows]
    except (KeyError, TypeError):
        i = next(i for i, row in enumerate(rows) if not isinstance(row, Mapping) or key not in row)
        raise DatasetError(f"{path}: {_label(rows, i, what)} has no {key!r}") from None


def _label(rows: list[Any], index: int, what: str) -> str:
    row = rows[index]
    if isinstance(row, Mapping) and type(row.get("id")) is int:
        return f"{what} id {row['id']}"
    return f"{what} number {index} of the list"


def _shorten(value: Any, limit: int = 300) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."
