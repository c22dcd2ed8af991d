"""Images without annotations beside those that have some: every batch holds a part of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch.utils.data import Sampler

from mokd_det.data.catalog import load_dataset_dicts
from mokd_det.data.image_file import check_size
from mokd_det.data.input_files import find_input_files
from mokd_det.data.sampling import EpochBatches, SampleKey
from mokd_det.errors import ConfigError, DatasetError

__all__ = ["MixedBatches", "UnlabeledImages"]

# Augmentation is seeded by positions: those of unlabelled samples begin where no training comes to.
_POSITIONS_FROM = 1 << 40


@dataclass(frozen=True)
class UnlabeledImages:
    """A folder of images that nobody has annotated.

    Attributes:
        folder: the images directly in it.
        total_batch_size: of them in each batch, over all processes.
        leave_out: registered data sets whose images are not taken even if they lie in the folder: what the result is
            judged by.
    """

    folder: str
    total_batch_size: int
    leave_out: Sequence[str] = ()

    def records(self, labelled: Iterable[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
        """Detectron2's standard dicts, without annotations and marked as "unlabeled".

        Args:
            labelled: records that the training has labels of, which are left out, too; where only some of a data set
                are drawn, its others may serve without their labels.

        Raises:
            DatasetError: no such folder, no image is left, or a file that is none, by its header.
        """
        judged = (record for name in self.leave_out for record in load_dataset_dicts(name))
        known = {os.path.realpath(record["file_name"]) for record in chain(labelled, judged)}
        paths = [file.path for file in find_input_files([self.folder])]
        records = [
            {"file_name": str(path), "image_id": path.name, "annotations": [], "unlabeled": True}
            for path in paths
            if os.path.realpath(path) not in known
        ]
        if not records:
            others = "".join(f" or those of {name}" for name in self.leave_out)
            raise DatasetError(
                f"all {len(paths)} images in {self.folder} are labelled ones{others}: none is left"
            )
        for record in records:
            check_size(record)
        return records


class MixedBatches(Sampler[list[SampleKey]]):
    """Batches of labelled samples, each followed by a batch of unlabelled ones, whose records count on from theirs."""

    def __init__(self, labeled: EpochBatches, unlabeled: EpochBatches) -> None:
        self._labeled, self._unlabeled = labeled, unlabeled
        self.batch_size = labeled.batch_size + unlabeled.batch_size
        self.batches_per_epoch = labeled.batches_per_epoch
        self.seed, self.views = labeled.seed, labeled.views

    def starting_at(self, batch: int) -> MixedBatches:
        """The same stream from another batch on."""
        return MixedBatches(self._labeled.starting_at(batch), self._unlabeled.starting_at(batch))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for labeled, unlabeled in zip(self._labeled, self._unlabeled, strict=True):
            moved = [
                SampleKey(_POSITIONS_FROM + key.position, self._labeled.size + key.record, key.view)
                for key in unlabeled
            ]
            yield [*labeled, *moved]


def require_folder(key: str, folder: str) -> None:
    """
    Raises:
        ConfigError: there is no such folder, which ``key`` names.
    """
    if not os.path.isdir(folder):
        there = ", but a file: unpack archives first" if os.path.isfile(folder) else ""
        raise ConfigError(f"{key}: there is no folder '{folder}'{there}")


def checked_unlabeled(section: Any) -> tuple[str, int | None]:
    """Folder and batch size of the section ``data.unlabeled``.

    Raises:
        ConfigError: it is no such section.
    """
    if not isinstance(section, Mapping) or not set(section) <= {"images", "total_batch_size"}:
        raise ConfigError(f"data.unlabeled is {section!r}; it must have the keys images and total_batch_size")
    folder, size = section.get("images") or "", section.get("total_batch_size")
    if not isinstance(folder, str):
        raise ConfigError(f"data.unlabeled.images is {folder!r}; it must be a path")
    if size is not None:
        require_count("data.unlabeled.total_batch_size", size)
    return os.path.expanduser(folder), size


def require_count(key: str, value: Any) -> None:
    """
    Raises:
        ConfigError: the value of ``key`` is no integer of 1 or more.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} is {value!r}; it must be an integer of 1 or more")
