"""A COCO-format file as checked columns.

The checks run over whole columns of the file (numpy), so a file with millions of boxes costs seconds. What
does not pass is reported to a :class:`mokd_det.data.findings.Findings`, which decides whether the first
problem ends the reading or all are counted; entries with a problem are left out of the columns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager

from mokd_det.data.boxes import clip_boxes
from mokd_det.data.checked_rows import CheckedRows, shorten
from mokd_det.data.coco_source import CocoFormatSource
from mokd_det.data.file_spelling import likely_file
from mokd_det.data.findings import Findings
from mokd_det.errors import DatasetError

__all__ = ["CocoColumns", "read_categories", "read_columns", "read_json", "read_sections"]

# Annotation tools round to whole pixels and count the last one differently, so one pixel beyond the border is common.
_ROUNDING_SLACK_PX = 1.0
_SUSPICIOUS_SHARE = 0.1

_READ_KEYS = {
    *("images", "categories", "annotations", "id", "name", "file_name", "width", "height"),
    *("image_id", "category_id", "bbox", "area", "iscrowd", "score"),
}


@dataclass(frozen=True)
class CocoColumns:
    """The usable entries of a file.

    Attributes:
        category_ids, category_names: (C,), ascending by id.
        image_ids: (N,) int64, ascending.
        file_names: of the images, below the image root (as the file writes them without one).
        sizes_wh: (N, 2) int64, width and height in pixels.
        annotation_ids: (M,) int64, in the file's order.
        image_rows: (M,) int64, the annotation's image as an index of ``image_ids``.
        classes: (M,) int64, its category as an index of ``category_ids``.
        boxes: (M, 4) float64, absolute xyxy, clipped to the image.
        areas: (M,) float64, square pixels, above 0: of the object's mask as the file says it; else of the box.
        crowd: (M,) bool.
        maybe_used: (C,) bool, the categories that an annotation left out for an error has, or may have.
    """

    category_ids: np.ndarray
    category_names: list[str]
    image_ids: np.ndarray
    file_names: list[str]
    sizes_wh: np.ndarray
    annotation_ids: np.ndarray
    image_rows: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    maybe_used: np.ndarray


def read_columns(source: CocoFormatSource, findings: Findings) -> CocoColumns:
    """Read and check a file.

    Raises:
        DatasetError: the file is missing, unreadable, no JSON or has not COCO's three lists; and whatever
            ``findings`` raises.
    """
    content = read_sections(source)
    path = source.json_file
    category_ids, names = read_categories(content["categories"], path, findings)

    images = CheckedRows(content["images"], "image", path, findings)
    ids = images.unique_ints("id")
    has_id = images.good.copy()
    sizes_wh = np.stack([images.ints("width"), images.ints("height")], axis=1)
    for column, key in enumerate(("width", "height")):
        sizes = sizes_wh[:, column]

        def not_positive(i: int, key: str = key, sizes: np.ndarray = sizes) -> str:
            return f"image id {ids[i]} has {key} {sizes[i]}; must be > 0"

        images.reject(sizes <= 0, "size-not-positive", not_positive)
    file_names = images.strings("file_name")
    if source.image_root is not None:
        file_names = _check_files(images, file_names, ids, source.image_root)

    order = np.flatnonzero(images.good)
    order = order[np.argsort(ids[order], kind="stable")]
    columns: dict[str, Any] = {
        "category_ids": category_ids,
        "category_names": names,
        "image_ids": ids[order],
        "file_names": [file_names[i] for i in order],
        "sizes_wh": sizes_wh[order],
    }
    annotations = CheckedRows(
        content["annotations"] if source.has_annotations else [], "annotation", path, findings
    )
    return CocoColumns(**columns, **_read_annotations(annotations, columns, np.unique(ids[has_id]), source))


def _read_annotations(
    annotations: CheckedRows,
    columns: Mapping[str, Any],
    known_image_ids: np.ndarray,
    source: CocoFormatSource,
) -> dict[str, Any]:
    """The columns of the annotations whose image and category are usable. ``columns`` are those of categories and
    usable images, ``known_image_ids``, ascending, of all images, also those with a problem of their own."""
    image_ids, category_ids = columns["image_ids"], columns["category_ids"]
    ids = annotations.unique_ints("id") if source.unique_annotation_ids else annotations.ints("id")
    owners = annotations.ints("image_id")
    annotations.reject(
        ~_find(owners, known_image_ids)[1],
        "unknown-image",
        lambda i: f"annotation id {ids[i]} belongs to image id {owners[i]}, which 'images' lacks",
    )
    had_category = annotations.good.copy()
    labels = annotations.ints("category_id")
    classes, known = _find(labels, category_ids)
    annotations.reject(
        ~known,
        "unknown-category",
        lambda i: (
            f"annotation id {ids[i]} (image id {owners[i]}) has category_id {labels[i]}, which is not in "
            f"'categories' ({shorten(category_ids.tolist())})"
        ),
    )
    may_be_any = bool((had_category & ~annotations.good).any())
    boxes = annotations.boxes("bbox")
    crowd = annotations.flags("iscrowd")
    areas = annotations.areas("area")
    rows, usable = _find(owners, image_ids)
    # Its image has been reported already.
    annotations.good &= usable
    dropped = np.zeros(len(rows), dtype=bool)
    if len(image_ids):
        boxes, areas, dropped = _clip(annotations, boxes, areas, ids, rows, columns, source)
    good = annotations.good
    maybe_used = np.full(len(category_ids), may_be_any)
    maybe_used[classes[known & ~good & ~dropped]] = True
    if source.has_annotations and not maybe_used.any() and not (good & ~crowd).any():
        annotations.findings.add(
            "no-boxes",
            [0],
            lambda _: (
                f"{annotations.path}: no image has a box: nothing can be learned from it, or judged by it"
            ),
            severity="warning",
        )
    return {
        "annotation_ids": ids[good],
        "image_rows": rows[good],
        "classes": classes[good],
        "boxes": boxes[good],
        "areas": areas[good],
        "crowd": crowd[good],
        "maybe_used": maybe_used,
    }


def _clip(
    annotations: CheckedRows,
    boxes_xywh: np.ndarray,
    areas: np.ndarray,
    ids: np.ndarray,
    rows: np.ndarray,
    columns: Mapping[str, Any],
    source: CocoFormatSource,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes as xyxy inside their images (those without area there are rejected), areas not above theirs where they have
    been clipped, and which boxes ``source`` wants dropped."""
    sizes = columns["sizes_wh"][rows]
    boxes = boxes_xywh.copy()
    boxes[:, 2:] += boxes[:, :2]
    clipped, has_area = clip_boxes(boxes, sizes)
    beyond = np.abs(clipped - boxes).max(axis=1, initial=0.0)
    _suspect_corners(annotations, boxes_xywh, sizes, beyond > _ROUNDING_SLACK_PX)
    _suspect_fractions(annotations, boxes_xywh)
    before = annotations.good.copy()

    def describe(i: int) -> str:
        row = rows[i]
        return (
            f"annotation id {ids[i]} of image id {columns['image_ids'][row]} ({columns['file_names'][row]}) "
            f"has bbox [{', '.join(f'{v:.6g}' for v in boxes_xywh[i])}], which"
        )

    # NaN is caught before; a box without size has none anywhere, one with a size lies elsewhere.
    sized = (boxes_xywh[:, 2:] > 0).all(axis=1)
    drop = source.on_bad_box == "drop"
    hint = "correct the file, or leave such boxes out: data.on_bad_box=drop (tools: --drop-bad-boxes)"
    for kind, bad in (("box-without-area", ~has_area & ~sized), ("box-outside", ~has_area & sized)):
        annotations.reject(
            bad,
            kind,
            lambda i: (
                f"{describe(i)} has no area inside the image of width {sizes[i, 0]} and height {sizes[i, 1]}"
            ),
            severity="warning" if drop else "error",
            hint="left out" if drop else hint,
        )
    dropped = before & ~annotations.good if drop else np.zeros(len(rows), dtype=bool)
    annotations.warn(
        beyond > _ROUNDING_SLACK_PX,
        "box-reaches-out",
        lambda i: (
            f"{describe(i)} reaches {beyond[i]:.4g} pixels out of the image of width {sizes[i, 0]} and height "
            f"{sizes[i, 1]} and is clipped"
        ),
    )
    inside = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1)
    areas = np.where(np.isnan(areas) | ((beyond > _ROUNDING_SLACK_PX) & (areas > inside)), inside, areas)
    return clipped, areas, dropped


def _suspect_corners(
    annotations: CheckedRows, boxes: np.ndarray, sizes: np.ndarray, reaches_out: np.ndarray
) -> None:
    """Warn if the boxes look like two corners: some reach out of their image as [x, y, w, h], none as corners."""
    good = annotations.good
    limits = np.tile(sizes, 2) + _ROUNDING_SLACK_PX
    corners = np.all(boxes[:, 2:] > boxes[:, :2], axis=1) & np.all(boxes <= limits, axis=1)
    count, out = int(good.sum()), int((good & reaches_out).sum())
    if not out or out < _SUSPICIOUS_SHARE * count or not corners[good].all():
        return
    annotations.warn(
        good & (np.cumsum(good & reaches_out) == 1) & reaches_out,
        "corners-suspected",
        lambda i: (
            f"the boxes seem to be corners [x0, y0, x1, y1]: {out} of {count} reach out of their image if they are "
            f"read as COCO's [x, y, width, height], all lie inside it as corners; {annotations.label(i)} has "
            f"bbox {boxes[i].tolist()}"
        ),
    )


def _suspect_fractions(annotations: CheckedRows, boxes: np.ndarray) -> None:
    """Warn if the boxes look like shares of the image's size: all of them lie within its first pixel."""
    good = annotations.good
    if not good.any() or (boxes[good] < 0).any() or (boxes[good] > 1).any():
        return
    annotations.warn(
        good & (np.cumsum(good) == 1),
        "fractions-suspected",
        lambda i: (
            f"the boxes seem to be fractions of the image's width and height, as YOLO has them: none of {good.sum()} "
            f"leaves the first pixel; COCO's are in pixels; {annotations.label(i)} has bbox {boxes[i].tolist()}"
        ),
    )


def read_sections(source: CocoFormatSource) -> dict[str, list[Any]]:
    """The lists of a file.

    Raises:
        DatasetError: the file is missing, unreadable, no JSON, or a list is missing or empty.
    """
    content = read_json(source.json_file, hint=source.hint)
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


def read_categories(categories: list[Any], path: str, findings: Findings) -> tuple[np.ndarray, list[str]]:
    """Ids, ascending, and their names."""
    rows = CheckedRows(categories, "category", path, findings)
    ids = rows.unique_ints("id")
    names = rows.strings("name")
    first: dict[str, int] = {}
    for i in np.flatnonzero(rows.good):
        first.setdefault(names[i], int(i))
    rows.reject(
        [first.get(name, i) != i for i, name in enumerate(names)],
        "repeated-name",
        lambda i: f"the category name {names[i]!r} occurs twice; class names must be distinct",
    )
    order = np.flatnonzero(rows.good)
    order = order[np.argsort(ids[order], kind="stable")]
    return ids[order], [names[i] for i in order]


def _without_unread_keys(entry: dict[str, Any]) -> dict[str, Any]:
    # Polygons take several times the memory of all the rest; this way they go as soon as they are parsed.
    return {key: value for key, value in entry.items() if key in _READ_KEYS}


def read_json(path: str, what: str = "data set file", *, hint: str = "") -> Any:
    """The content of a JSON file in UTF-8 (with a byte order mark or without) or UTF-16, without the keys that nothing
    here reads; ``hint`` is for the error about a missing file.

    Raises:
        DatasetError: the file is missing, unreadable or no JSON.
    """
    try:
        with PathManager.open(path, "rb") as file:
            content = file.read()
        return json.loads(content, object_hook=_without_unread_keys)
    except FileNotFoundError:
        raise DatasetError(f"{what} {path} does not exist{f'; {hint}' if hint else ''}") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{what} {path} is not valid JSON: {_problem(content, error)}") from None
    except OSError as error:
        raise DatasetError(f"{what} {path} cannot be read: {error.strerror or error}") from None


def _problem(content: bytes, error: Exception) -> str:
    """What is the matter with a file that is no JSON."""
    start = content[:40].decode(json.detect_encoding(content), "replace").strip()
    if not start:
        return "it is empty"
    if content.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        return "it is compressed; unpack it"
    if start.startswith(("{", "[")):
        return str(error)
    return (
        f"it begins with {start.splitlines()[0]!r}; other formats (CSV, YOLO's .txt, Pascal VOC's .xml) must be "
        "converted to COCO's first"
    )


def _check_files(images: CheckedRows, names: list[str], ids: np.ndarray, image_root: str) -> list[str]:
    """The images' paths. Rejects files that are not below the image root, as their names are written (links are
    followed), and those that are not there."""
    paths = [os.path.join(image_root, name) for name in names]
    root = os.path.join(os.path.abspath(image_root), "")
    images.reject(
        [
            (name.startswith("/") or ".." in name) and not os.path.abspath(path).startswith(root)
            for name, path in zip(names, paths)
        ],
        "file-outside-root",
        lambda i: (
            f"image id {ids[i]} has file_name={names[i]!r}, which leads out of the image folder {image_root}"
        ),
    )
    # One listing per folder instead of one lookup per image: on network file systems the latter takes minutes.
    folders = [os.path.dirname(path) for path in paths]
    listings: dict[str, frozenset[str]] = {}
    reasons: dict[str, str] = {}
    for folder in {folders[i] for i in np.flatnonzero(images.good)}:
        try:
            listings[folder] = frozenset(PathManager.ls(folder or "."))
        except OSError as error:
            reasons[folder] = error.strerror or str(error)

    def meant(i: int) -> str:
        likely = likely_file(image_root, names[i])
        return f"; {likely}" if likely else ""

    images.reject(
        [folder in reasons for folder in folders],
        "folder-unreadable",
        lambda i: (
            f"image folder {folders[i]} (of image id {ids[i]}) cannot be read: {reasons[folders[i]]}{meant(i)}"
        ),
    )
    images.reject(
        [os.path.basename(path) not in listings.get(folder, ()) for path, folder in zip(paths, folders)],
        "file-missing",
        lambda i: f"image file {paths[i]} (image id {ids[i]}) does not exist{meant(i)}",
    )
    return paths


def _find(values: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of ``values`` in ``ascending``, and which of them really occur there."""
    if not len(ascending):
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    positions = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return positions, ascending[positions] == values
