"""What detections are judged by: a data set's boxes as its training sees them, checked, clipped and without those
dropped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from mokd_det.data.boxes import annotation_boxes, clip_boxes
from mokd_det.data.catalog import coco_source, load_dataset_dicts
from mokd_det.data.checked_rows import is_positive
from mokd_det.data.coco_format import read_checked
from mokd_det.data.coco_source import BadBoxPolicy, CocoFormatSource

__all__ = ["Truth", "dataset_truth", "file_truth"]


@dataclass(frozen=True)
class Truth:
    """The true boxes of a data set.

    Attributes:
        name: the annotation file, or the data set, for messages.
        image_names: image id → file name.
        class_names: category id (the file's) → name, by ascending id.
        image_ids: (N,) of the boxes; int64, or objects where a loader of its own names images otherwise.
        category_ids, crowd: (N,) int64 and bool.
        boxes: (N, 4) float64, [x, y, width, height] in pixels, inside their images.
        areas: (N,) float64, square pixels, above 0: of the mask where it is known, else of the box.
        annotated: False for a data set of images only, by which nothing can be judged.
    """

    name: str
    image_names: Mapping[Any, str]
    class_names: Mapping[int, str]
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    annotated: bool = True

    def of_images(self, image_ids: Iterable[Any]) -> Truth:
        """The part of it that lies in these images."""
        wanted = set(image_ids)
        kept = np.array([image in wanted for image in self.image_ids.tolist()], dtype=bool)
        columns = ("image_ids", "category_ids", "boxes", "areas", "crowd")
        return replace(
            self,
            image_names={image: name for image, name in self.image_names.items() if image in wanted},
            **{name: getattr(self, name)[kept] for name in columns},
        )


def dataset_truth(name: str, *, warn: bool = True) -> Truth:
    """The truth of a registered data set, read and checked as :func:`mokd_det.data.load_dataset_dicts` does, but
    without a look at image files; ``warn`` is off where a loader of the same data set has warned already.

    Raises:
        DatasetError: unknown name, or anything in the files that cannot be used.
    """
    source = coco_source(name)
    json_file = MetadataCatalog.get(name).get("json_file")
    if source is None and json_file is not None:
        # Registered by Detectron2's own function, whose records have no areas.
        source = CocoFormatSource(name, os.fspath(json_file), None)
    if source is None:
        return _of_records(name, load_dataset_dicts(name))
    return _of_file(source, warn)


def file_truth(
    json_file: str | os.PathLike[str], *, on_bad_box: BadBoxPolicy = "error", hint: str = ""
) -> Truth:
    """The truth that a file in COCO's detection format holds; the images themselves are not needed.

    Raises:
        DatasetError: anything in the file that cannot be used, by file and id.
    """
    return _of_file(CocoFormatSource(None, os.fspath(json_file), None, on_bad_box, hint=hint), True)


def _of_file(source: CocoFormatSource, warn: bool) -> Truth:
    columns = read_checked(replace(source, image_root=None), warn=warn)
    return Truth(
        source.json_file,
        dict(zip(columns.image_ids.tolist(), columns.file_names)),
        dict(zip(columns.category_ids.tolist(), columns.category_names)),
        columns.image_ids[columns.image_rows],
        columns.category_ids[columns.classes],
        _as_xywh(columns.boxes),
        columns.areas,
        columns.crowd,
        source.has_annotations,
    )


def _of_records(name: str, records: Sequence[Mapping[str, Any]]) -> Truth:
    """The truth of checked standard dicts."""
    metadata = MetadataCatalog.get(name)
    annotations = [(record, annotation) for record in records for annotation in record.get("annotations", ())]
    contiguous = np.array([annotation["category_id"] for _, annotation in annotations], dtype=np.int64)
    count = int(contiguous.max(initial=-1)) + 1
    class_names = list(metadata.get("thing_classes") or map(str, range(count)))
    index_of = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(class_names))}
    id_of = {index: int(id_) for id_, index in index_of.items()}
    sizes = np.array([(record["width"], record["height"]) for record, _ in annotations]).reshape(-1, 2)
    boxes, _ = clip_boxes(annotation_boxes([annotation for _, annotation in annotations]), sizes)
    boxes = _as_xywh(boxes)
    of_boxes = boxes[:, 2:].prod(axis=1)
    areas = [annotation.get("area") for _, annotation in annotations]
    ids = [record["image_id"] for record, _ in annotations]
    return Truth(
        f"data set {name!r}",
        {record["image_id"]: str(record["file_name"]) for record in records},
        {id_of[index]: class_names[index] for index in sorted(id_of, key=lambda index: id_of[index])},
        np.array(ids, dtype=np.int64 if all(isinstance(id_, int) for id_ in ids) else object),
        np.array([id_of[index] for index in contiguous.tolist()], dtype=np.int64),
        boxes,
        np.array(
            [a if is_positive(a) else box for a, box in zip(areas, of_boxes.tolist())], dtype=np.float64
        ),
        np.array([bool(annotation.get("iscrowd", 0)) for _, annotation in annotations], dtype=bool),
        any("annotations" in record for record in records),
    )


def _as_xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)
