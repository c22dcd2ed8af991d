"""What a predicted class means: its name, and its category id in the data set's file."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.data import MetadataCatalog

from mokd_det.data.catalog import load_classes
from mokd_det.data.coco_format import read_classes
from mokd_det.errors import ConfigError

__all__ = ["ClassTable", "dataset_classes", "file_classes"]


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, by contiguous index: names, ids in the data set's file, ascending, and where they are
    from, for messages."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    source: str

    def index(self, predicted: int, *, by_id: bool = False) -> int | None:
        """The contiguous index of a predicted class: such an index, or with ``by_id`` a category id. None for ids below
        the largest that the data set does not use, the spare rows of such a head.

        Raises:
            ConfigError: a class that the data set does not have.
        """
        limit = self.category_ids[-1] + 1 if by_id else len(self.names)
        if not 0 <= predicted < limit:
            raise ConfigError(
                f"the model predicts class {predicted}, but {self.source} has {len(self.names)} classes (0 to "
                f"{limit - 1} can be predicted); give the annotation file of the data it was trained on"
            )
        if not by_id:
            return predicted
        return self.category_ids.index(predicted) if predicted in self.category_ids else None


def file_classes(json_file: str) -> ClassTable:
    """The classes of a file in COCO's format.

    Raises:
        DatasetError: the file is missing, not in COCO format, or its categories cannot be used.
    """
    ids, names, _ = read_classes(json_file)
    return ClassTable(tuple(names), tuple(int(id_) for id_ in ids), json_file)


def dataset_classes(name: str) -> ClassTable:
    """The classes of a registered data set: from its metadata if they are complete (COCO's are known without any file),
    else from its annotation file.

    Raises:
        DatasetError: unknown name, or an annotation file that is missing or unusable.
        ConfigError: a data set without class names.
    """
    metadata = MetadataCatalog.get(name) if name in MetadataCatalog.list() else None
    if metadata is None or not metadata.get("thing_dataset_id_to_contiguous_id"):
        load_classes(name)
        metadata = MetadataCatalog.get(name)
    names = metadata.get("thing_classes")
    if not names:
        raise ConfigError(f"the metadata of data set {name!r} has no thing_classes")
    known = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(names))}
    ids = sorted(known, key=lambda id_: known[id_])
    return ClassTable(tuple(names), tuple(int(id_) for id_ in ids), f"data set {name!r}")
