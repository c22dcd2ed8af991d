"""Everything that is wrong with a COCO-format data set, and what is in it."""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from detectron2.utils.file_io import PathManager
from torch.utils.data import DataLoader, Dataset

from mokd_det.data.coco_columns import CocoColumns, read_columns
from mokd_det.data.coco_source import CocoFormatSource
from mokd_det.data.dataset_statistics import DatasetStatistics, dataset_statistics
from mokd_det.data.findings import CollectFindings, Findings, Problem
from mokd_det.data.image_file import image_size, read_image, size_difference
from mokd_det.errors import ConfigError, DatasetError

__all__ = ["IMAGE_CHECKS", "DatasetReport", "ImageCheck", "check_dataset"]

ImageCheck = Literal["list", "header", "decode"]
IMAGE_CHECKS = ("list", "header", "decode")

_IMAGES_PER_TASK = 64


@dataclass(frozen=True)
class DatasetReport:
    """The result of :func:`check_dataset`.

    Attributes:
        source: what was checked.
        image_check: how far the image files were looked at.
        statistics: of the usable entries.
        problems: errors first.
        errors: how many entries would stop a training.
        warnings: how many are suspicious.
        columns: the usable entries themselves.
    """

    source: CocoFormatSource
    image_check: ImageCheck
    statistics: DatasetStatistics
    problems: list[Problem]
    errors: int
    warnings: int
    columns: CocoColumns


def check_dataset(
    source: CocoFormatSource,
    *,
    image_check: ImageCheck = "header",
    num_workers: int = 0,
    max_examples: int = 10,
    max_objects: int = 100,
) -> DatasetReport:
    """Check a whole data set instead of stopping at its first problem.

    Errors are what a training refuses (the same checks find it); warnings are entries that train but hardly
    as they are meant: images or boxes that occur twice, categories without a box, more objects than a
    detector has queries, boxes that are clipped.

    Args:
        image_check: "list": image files exist; "header": their header says the size that the annotations
            say; "decode": every pixel can be decoded, and no two files have the same content.
        num_workers: processes that look at image files; 0: this one.
        max_examples: messages kept per kind of problem; all are counted.
        max_objects: objects per image above which it is reported.

    Raises:
        DatasetError: the annotation file is missing, unreadable, no JSON or lacks one of COCO's lists.
        ConfigError: unknown ``image_check``.
    """
    if image_check not in IMAGE_CHECKS:
        raise ConfigError(f"image_check={image_check!r}; it must be one of {', '.join(IMAGE_CHECKS)}")
    findings = CollectFindings(max_examples)
    columns = read_columns(source, findings)
    if image_check != "list":
        _check_images(columns, source, findings, image_check == "decode", num_workers)
    _find_repeated_files(columns, source, findings)
    if source.has_annotations:
        _find_repeated_boxes(columns, source, findings)
        _find_unused_categories(columns, source, findings)
        _find_crowded_images(columns, source, findings, max_objects)
    return DatasetReport(
        source,
        image_check,
        dataset_statistics(columns),
        findings.problems,
        findings.count("error"),
        findings.count("warning"),
        columns,
    )


class _ImageResult(NamedTuple):
    """What looking at the image file of a row gave: a problem, if any, and the digest of a decoded file's content."""

    row: int
    kind: str = ""
    message: str = ""
    digest: bytes = b""


class _ImageFiles(Dataset[_ImageResult]):
    """Looks at one image file; made for worker processes."""

    def __init__(self, columns: CocoColumns, decode: bool) -> None:
        # One array of bytes, not a list of strings, whose reference counters would copy the pages into every worker.
        self._names = np.array([os.fsencode(name) for name in columns.file_names])
        self._ids = columns.image_ids
        self._sizes_wh = columns.sizes_wh
        self._decode = decode

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> _ImageResult:
        file_name = os.fsdecode(self._names[row])
        name = f"image {file_name} (image id {self._ids[row]})"
        digest = b""
        try:
            if self._decode:
                height, width = read_image(file_name, name).shape[:2]
                digest = _digest(file_name)
            else:
                width, height = image_size(file_name, name)
        except DatasetError as error:
            return _ImageResult(row, "file-undecodable", str(error))
        expected_width, expected_height = self._sizes_wh[row].tolist()
        difference = size_difference((width, height), (expected_width, expected_height), file_name)
        if difference:
            return _ImageResult(row, "size-mismatch", f"{name} {difference}", digest)
        return _ImageResult(row, digest=digest)


def _check_images(
    columns: CocoColumns, source: CocoFormatSource, findings: Findings, decode: bool, num_workers: int
) -> None:
    files = _ImageFiles(columns, decode)
    loader: DataLoader[Any] = DataLoader(
        files, batch_size=_IMAGES_PER_TASK, num_workers=num_workers, collate_fn=list
    )
    first_with: dict[bytes, int] = {}
    for result in itertools.chain.from_iterable(loader):
        if result.kind:
            findings.add(result.kind, [result.row], lambda i: f"{source.json_file}: {result.message}")  # noqa: B023
        if not result.digest:
            continue
        row = first_with.setdefault(result.digest, result.row)
        # One file under two names of the list is another finding.
        if os.path.normpath(columns.file_names[row]) != os.path.normpath(columns.file_names[result.row]):
            findings.add(
                "repeated-content",
                [result.row],
                lambda i: (
                    f"{source.json_file}: {_image(columns, i)} has the same content as {_image(columns, row)}"  # noqa: B023
                ),
                severity="warning",
            )


def _digest(file_name: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with PathManager.open(file_name, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _find_repeated_files(columns: CocoColumns, source: CocoFormatSource, findings: Findings) -> None:
    first: dict[str, int] = {}
    files = [os.path.normpath(name) for name in columns.file_names]
    findings.add(
        "repeated-file",
        [row for row, file in enumerate(files) if first.setdefault(file, row) != row],
        lambda i: (
            f"{source.json_file}: image id {columns.image_ids[i]} has the file of image id "
            f"{columns.image_ids[first[files[i]]]}, {columns.file_names[i]}"
        ),
        severity="warning",
    )


def _find_repeated_boxes(columns: CocoColumns, source: CocoFormatSource, findings: Findings) -> None:
    keys = [*columns.boxes.T[::-1], columns.image_rows]
    # Stable, so that of equal boxes the first of the file comes first.
    order = np.lexsort(keys)
    equal = np.ones(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        values = key[order]
        equal &= values[1:] == values[:-1]

    def describe(i: int) -> str:
        row, before = order[i], order[i - 1]
        names = [columns.category_names[columns.classes[j]] for j in (row, before)]
        return (
            f"{source.json_file}: annotation id {columns.annotation_ids[row]} ({names[0]!r}) has the box of "
            f"annotation id {columns.annotation_ids[before]} ({names[1]!r}) on image id "
            f"{columns.image_ids[columns.image_rows[row]]}"
        )

    findings.add("repeated-box", np.flatnonzero(equal) + 1, describe, severity="warning")


def _find_unused_categories(columns: CocoColumns, source: CocoFormatSource, findings: Findings) -> None:
    used = np.bincount(columns.classes[~columns.crowd], minlength=len(columns.category_ids))
    # A category whose annotation has an error is not unused: the error is told already.
    findings.add(
        "unused-category",
        np.flatnonzero((used == 0) & ~columns.maybe_used),
        lambda i: (
            f"{source.json_file}: category id {columns.category_ids[i]} ({columns.category_names[i]!r}) has no box"
        ),
        severity="warning",
    )


def _find_crowded_images(
    columns: CocoColumns, source: CocoFormatSource, findings: Findings, max_objects: int
) -> None:
    objects = np.bincount(columns.image_rows[~columns.crowd], minlength=len(columns.image_ids))
    findings.add(
        "crowded-image",
        np.flatnonzero(objects > max_objects),
        lambda i: (
            f"{source.json_file}: {_image(columns, i)} has {objects[i]} objects; a detector of {max_objects} queries "
            "cannot find all"
        ),
        severity="warning",
    )


def _image(columns: CocoColumns, row: int) -> str:
    return f"image {columns.file_names[row]} (image id {columns.image_ids[row]})"
