"""A COCO-format file as checked columns.

The checks run over whole columns of the file (numpy), so a file with millions of boxes costs seconds. What
does not pass is reported to a :class:`mokd_det.data.findings.Findings`, which decides whether the first
problem ends the reading or all are counted; entries with a problem are left out of the columns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.utils.file_io import PathManager

from mokd_det.data.boxes import clip_boxes
from mokd_det.data.findings import Findings, Severity
from mokd_det.errors import DatasetError

if TYPE_CHECKING:
    from mokd_det.data.coco_format import CocoFormatSource

__all__ = ["CocoColumns", "read_categories", "read_columns", "read_sections", "shorten"]

# Annotation tools round to whole pixels and count the last one differently, so one pixel beyond the border is
# common.
_ROUNDING_SLACK_PX = 1.0

_LISTS = ("images", "categories", "annotations")
_KEYS = ("id", "image_id", "category_id", "bbox", "iscrowd", "file_name", "width", "height", "name")
_READ_KEYS = frozenset((*_LISTS, *_KEYS))


@dataclass(frozen=True)
class CocoColumns:
    """The usable entries of a file.

    Attributes:
        category_ids: (C,) int64, ascending.
        category_names: of the same.
        image_ids: (N,) int64, ascending.
        file_names: of the images, below the image root.
        sizes_wh: (N, 2) int64, width and height in pixels.
        annotation_ids: (M,) int64, in the file's order.
        image_rows: (M,) int64, the annotation's image as an index of ``image_ids``.
        classes: (M,) int64, its category as an index of ``category_ids``.
        boxes: (M, 4) float64, absolute xyxy, clipped to the image.
        crowd: (M,) bool.
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
    crowd: np.ndarray


def read_columns(source: CocoFormatSource, findings: Findings) -> CocoColumns:
    """Read and check a file.

    Raises:
        DatasetError: the file is missing, unreadable, no JSON or has not COCO's three lists; and whatever
            ``findings`` raises.
    """
    content = read_sections(source)
    path = source.json_file
    category_ids, names = read_categories(content["categories"], path, findings)

    images = _Rows(content["images"], "image", path, findings)
    ids = images.unique_ints("id")
    has_id = images.good.copy()
    sizes_wh = np.stack([images.ints("width"), images.ints("height")], axis=1)
    for column, key in enumerate(("width", "height")):
        sizes = sizes_wh[:, column]
        images.reject(sizes <= 0, "size-not-positive", partial(_size_not_positive, ids, key, sizes))
    names_in_file = images.strings("file_name")
    file_names = [os.path.join(source.image_root, name) for name in names_in_file]
    _check_inside(images, file_names, names_in_file, ids, source.image_root)
    _check_image_files(images, file_names, ids)

    order = np.flatnonzero(images.good)
    order = order[np.argsort(ids[order], kind="stable")]
    columns: dict[str, Any] = {
        "category_ids": category_ids,
        "category_names": names,
        "image_ids": ids[order],
        "file_names": [file_names[i] for i in order],
        "sizes_wh": sizes_wh[order],
    }
    annotations = _Rows(
        content["annotations"] if source.has_annotations else [], "annotation", path, findings
    )
    return CocoColumns(**columns, **_read_annotations(annotations, columns, np.unique(ids[has_id]), source))


def _size_not_positive(ids: np.ndarray, key: str, sizes: np.ndarray, i: int) -> str:
    return f"image id {ids[i]} has {key} {sizes[i]}; must be > 0"


def _read_annotations(
    annotations: _Rows, columns: Mapping[str, Any], known_image_ids: np.ndarray, source: CocoFormatSource
) -> dict[str, Any]:
    """The columns of the annotations whose image and category are usable.

    Args:
        annotations: the file's list.
        columns: of categories and usable images.
        known_image_ids: ascending; of all images, also those with a problem of their own.
        source: for the policy on boxes.
    """
    image_ids, category_ids = columns["image_ids"], columns["category_ids"]
    ids = annotations.unique_ints("id") if source.unique_annotation_ids else annotations.ints("id")
    owners = annotations.ints("image_id")
    annotations.reject(
        ~_find(owners, known_image_ids)[1],
        "unknown-image",
        lambda i: f"annotation id {ids[i]} belongs to image id {owners[i]}, which 'images' lacks",
    )
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
    boxes = annotations.boxes("bbox", ids)
    crowd = annotations.flags("iscrowd", ids)
    rows, usable = _find(owners, image_ids)
    # Its image has been reported already.
    annotations.good &= usable
    if len(image_ids):
        boxes = _clip(annotations, boxes, ids, rows, columns, source)
    good = annotations.good
    return {
        "annotation_ids": ids[good],
        "image_rows": rows[good],
        "classes": classes[good],
        "boxes": boxes[good],
        "crowd": crowd[good],
    }


def _clip(
    annotations: _Rows,
    boxes_xywh: np.ndarray,
    ids: np.ndarray,
    rows: np.ndarray,
    columns: Mapping[str, Any],
    source: CocoFormatSource,
) -> np.ndarray:
    """Boxes as xyxy inside their images; those without area there are rejected."""
    sizes = columns["sizes_wh"][rows]
    boxes = boxes_xywh.copy()
    boxes[:, 2:] += boxes[:, :2]
    clipped, has_area = clip_boxes(boxes, sizes)

    def describe(i: int) -> str:
        row = rows[i]
        return (
            f"annotation id {ids[i]} of image id {columns['image_ids'][row]} ({columns['file_names'][row]}) "
            f"has bbox [{', '.join(f'{v:.6g}' for v in boxes_xywh[i])}], which"
        )

    # NaN is caught before; a box without size has none anywhere, one with a size lies elsewhere.
    sized = (boxes_xywh[:, 2:] > 0).all(axis=1)
    drop = source.on_bad_box == "drop"
    severity: Severity = "warning" if drop else "error"
    hint = "left out" if drop else "correct the file or register the data set with on_bad_box='drop'"
    for kind, bad in (("box-without-area", ~has_area & ~sized), ("box-outside", ~has_area & sized)):
        annotations.reject(
            bad,
            kind,
            lambda i: (
                f"{describe(i)} has no area inside the image of width {sizes[i, 0]} and height {sizes[i, 1]}"
            ),
            severity=severity,
            hint=hint,
        )
    beyond = np.abs(clipped - boxes).max(axis=1, initial=0.0)
    annotations.report(
        beyond > _ROUNDING_SLACK_PX,
        "box-reaches-out",
        lambda i: (
            f"{describe(i)} reaches {beyond[i]:.4g} pixels out of the image of width {sizes[i, 0]} and height "
            f"{sizes[i, 1]} and is clipped"
        ),
        severity="warning",
    )
    return clipped


def read_sections(source: CocoFormatSource) -> dict[str, list[Any]]:
    """The lists of a file.

    Raises:
        DatasetError: the file is missing, unreadable, no JSON, or a list is missing or empty.
    """
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


def read_categories(categories: list[Any], path: str, findings: Findings) -> tuple[np.ndarray, list[str]]:
    """Ids, ascending, and their names."""
    rows = _Rows(categories, "category", path, findings)
    ids = rows.unique_ints("id")
    names = rows.strings("name")
    first: dict[str, int] = {}
    for i in np.flatnonzero(rows.good):
        first.setdefault(names[i], int(i))
    rows.reject(
        np.array([first.get(name, i) != i for i, name in enumerate(names)]),
        "repeated-name",
        lambda i: f"the category name {names[i]!r} occurs twice; class names must be distinct",
    )
    order = np.flatnonzero(rows.good)
    order = order[np.argsort(ids[order], kind="stable")]
    return ids[order], [names[i] for i in order]


def shorten(value: Any, limit: int = 300) -> str:
    """The value's text, cut to ``limit`` characters."""
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


class _Rows:
    """The entries of one list of the file, and which of them have had no problem so far.

    Every entry is rejected once at most: what follows from its first problem is not reported.
    """

    def __init__(self, rows: list[Any], what: str, path: str, findings: Findings) -> None:
        self.rows = rows
        self.what = what
        self.path = path
        self.findings = findings
        self.good = np.ones(len(rows), dtype=bool)

    def report(
        self,
        bad: np.ndarray,
        kind: str,
        message: Callable[[int], str],
        *,
        severity: Severity = "error",
        hint: str = "",
    ) -> np.ndarray:
        """Tell of those of the entries ``bad`` (N,) that had no problem before; returns their indices."""
        found = np.flatnonzero(bad & self.good)
        if found.size:
            self.findings.add(
                kind, found, lambda i: f"{self.path}: {message(i)}", severity=severity, hint=hint
            )
        return found

    def reject(
        self,
        bad: np.ndarray,
        kind: str,
        message: Callable[[int], str],
        *,
        severity: Severity = "error",
        hint: str = "",
    ) -> None:
        """:meth:`report`, and leave them out from now on."""
        self.good[self.report(bad, kind, message, severity=severity, hint=hint)] = False

    def label(self, index: int) -> str:
        row = self.rows[index]
        if isinstance(row, Mapping) and type(row.get("id")) is int:
            return f"{self.what} id {row['id']}"
        return f"{self.what} number {index} of the list"

    def values(self, key: str) -> list[Any]:
        """The column; None for entries without the key, which are rejected."""
        try:
            return [row[key] for row in self.rows]
        except (KeyError, TypeError):
            present = [isinstance(row, Mapping) and key in row for row in self.rows]
            self.reject(~np.array(present), "missing-key", lambda i: f"{self.label(i)} has no {key!r}")
            return [row[key] if there else None for row, there in zip(self.rows, present, strict=True)]

    def ints(self, key: str) -> np.ndarray:
        """The column, (N,) int64; 0 for entries that are rejected."""
        values = self.values(key)
        if not values:
            return np.zeros(0, dtype=np.int64)
        try:
            array = np.asarray(values)
        except ValueError:
            array = np.zeros(0)
        # Checked by the resulting dtype: asking for integers would turn the string "12" into a number without
        # a word.
        if array.ndim == 1 and array.dtype.kind == "i":
            return array.astype(np.int64)
        fits = [type(value) is int and abs(value) < 2**63 for value in values]
        self.reject(
            ~np.array(fits),
            "wrong-type",
            lambda i: f"{self.label(i)} has {key}={shorten(repr(values[i]))}; must be an integer",
        )
        return np.array(
            [value if fit else 0 for value, fit in zip(values, fits, strict=True)], dtype=np.int64
        )

    def unique_ints(self, key: str) -> np.ndarray:
        """:meth:`ints`; of several entries with one value the first is kept."""
        values = self.ints(key)
        usable = np.flatnonzero(self.good)
        repeated = np.ones(len(values), dtype=bool)
        repeated[usable[np.unique(values[usable], return_index=True)[1]]] = False
        self.reject(
            repeated,
            f"repeated-{key}",
            lambda i: f"the {self.what} {key} {values[i]} occurs twice; ids must be unique",
        )
        return values

    def strings(self, key: str) -> list[str]:
        """The column; "" for entries that are rejected."""
        values = self.values(key)
        fits = [isinstance(value, str) and value != "" for value in values]
        self.reject(
            ~np.array(fits, dtype=bool),
            "wrong-type",
            lambda i: f"{self.label(i)} has {key}={shorten(repr(values[i]))}; must be a non-empty string",
        )
        return [value if fit else "" for value, fit in zip(values, fits, strict=True)]

    def boxes(self, key: str, ids: np.ndarray) -> np.ndarray:
        """The column, (N, 4) float64, finite; zeros for entries that are rejected."""
        values = self.values(key)
        if not values:
            return np.zeros((0, 4))
        try:
            boxes = np.asarray(values)
        except ValueError:
            boxes = np.zeros(0)
        # By the resulting dtype, see ints
        if boxes.shape != (len(values), 4) or boxes.dtype.kind not in "iuf":
            fits = [_is_box(value) for value in values]
            self.reject(
                ~np.array(fits),
                "malformed-box",
                lambda i: (
                    f"annotation id {ids[i]} has bbox {shorten(repr(values[i]))}; must be four numbers "
                    "[x, y, w, h]"
                ),
            )
            boxes = np.array(
                [value if fit else (0, 0, 0, 0) for value, fit in zip(values, fits, strict=True)]
            )
        boxes = boxes.astype(np.float64)
        finite = np.isfinite(boxes).all(axis=1)
        self.reject(
            ~finite,
            "box-not-finite",
            lambda i: f"annotation id {ids[i]} has bbox {values[i]}; its numbers must be finite",
        )
        boxes[~finite] = 0.0
        return boxes

    def flags(self, key: str, ids: np.ndarray) -> np.ndarray:
        """An optional column of 0 and 1, (N,) bool."""
        values = [row.get(key, 0) if isinstance(row, Mapping) else 0 for row in self.rows]
        fits = [value in (0, 1) for value in values]
        self.reject(
            ~np.array(fits, dtype=bool),
            "wrong-type",
            lambda i: f"annotation id {ids[i]} has {key}={shorten(repr(values[i]))}; must be 0 or 1",
        )
        return np.array([fit and bool(value) for value, fit in zip(values, fits, strict=True)], dtype=bool)


def _without_unread_keys(entry: dict[str, Any]) -> dict[str, Any]:
    # Polygons take several times the memory of all the rest; this way they go as soon as they are parsed.
    return {key: value for key, value in entry.items() if key in _READ_KEYS}


def _read_json(json_file: str, hint: str = "") -> Any:
    try:
        with PathManager.open(json_file, "rb") as file:
            return json.load(file, object_hook=_without_unread_keys)
    except FileNotFoundError:
        raise DatasetError(f"data set file {json_file} does not exist{f'; {hint}' if hint else ''}") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"data set file {json_file} is not valid JSON: {error}") from None
    except OSError as error:
        raise DatasetError(f"data set file {json_file} cannot be read: {error.strerror or error}") from None


def _check_inside(
    images: _Rows, file_names: Sequence[str], names_in_file: Sequence[str], ids: np.ndarray, image_root: str
) -> None:
    """Reject files that are not below the image root, as their names are written (links are followed)."""
    root = os.path.join(os.path.abspath(image_root), "")
    escapes = np.zeros(len(file_names), dtype=bool)
    for i, (name, full) in enumerate(zip(names_in_file, file_names, strict=True)):
        if name.startswith("/") or ".." in name:
            escapes[i] = not os.path.abspath(full).startswith(root)
    images.reject(
        escapes,
        "file-outside-root",
        lambda i: (
            f"image id {ids[i]} has file_name={names_in_file[i]!r}, which leads out of the image folder "
            f"{image_root}"
        ),
    )


def _check_image_files(images: _Rows, file_names: Sequence[str], ids: np.ndarray) -> None:
    # One listing per folder instead of one lookup per image: on network file systems the latter takes
    # minutes.
    listings: dict[str, frozenset[str]] = {}
    reasons: dict[str, str] = {}
    unlisted = np.zeros(len(file_names), dtype=bool)
    missing = np.zeros(len(file_names), dtype=bool)
    for i, file_name in enumerate(file_names):
        if not images.good[i]:
            continue
        folder, base = os.path.split(file_name)
        if folder not in listings:
            try:
                listings[folder] = frozenset(PathManager.ls(folder or "."))
            except OSError as error:
                listings[folder] = frozenset()
                reasons[folder] = error.strerror or str(error)
        if folder in reasons:
            unlisted[i] = True
        elif base not in listings[folder]:
            missing[i] = True

    def unreadable(i: int) -> str:
        folder = os.path.dirname(file_names[i])
        return f"image folder {folder} (of image id {ids[i]}) cannot be read: {reasons[folder]}"

    images.reject(unlisted, "folder-unreadable", unreadable)
    images.reject(
        missing,
        "file-missing",
        lambda i: f"image file {file_names[i]} (image id {ids[i]}) does not exist",
    )


def _find(values: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of ``values`` in ``ascending``, and which of them really occur there."""
    if not len(ascending):
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    positions = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return positions, ascending[positions] == values


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(type(v) is float or (type(v) is int and abs(v) < 2**63) for v in value)
