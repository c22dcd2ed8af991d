"""Loaders: batches for training and evaluation, the same whatever the number of worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset

from mokd_det.data.catalog import has_boxes, load_dataset_dicts
from mokd_det.data.sampling import EpochBatches, SampleKey, augmentation_rng, drawn
from mokd_det.data.stream import EndlessLoader, Failure, build_share_loader, or_failure
from mokd_det.data.unlabeled import MixedBatches, UnlabeledImages
from mokd_det.data.view_key import view_key
from mokd_det.errors import DatasetError

__all__ = ["TrainLoader", "build_test_loader", "build_train_loader"]

Record = dict[str, Any]
Mapper = Callable[[Record], Record]
Records = str | Sequence[str] | Sequence[Record]


class TrainLoader(EndlessLoader[list[Record]]):
    """Endless training batches of this process, lists of model inputs.

    The records come from a permutation per epoch, the augmentation from generators that are seeded for each
    sample; see :class:`~mokd_det.data.stream.EndlessLoader`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        mapper: Mapper,
        batches: EpochBatches | MixedBatches,
        num_workers: int = 0,
    ) -> None:
        """The records, Detectron2's standard dicts, are kept in one serialised buffer that the workers share; the
        mapper makes a model input of each."""
        mapped = _MappedRecords(records, mapper)
        self._records = mapped.records
        super().__init__(_TrainSamples(mapped, batches.seed), batches, num_workers)

    def fingerprint(self) -> str:
        """A digest of which image is at which index, by id, file name and size; where the files lie does not matter."""
        digest = hashlib.blake2b(digest_size=16)
        for index in range(len(self._records)):
            record = self._records[index]
            name = PurePath(record.get("file_name", "")).name
            facts = (record.get("image_id"), name, record.get("height"), record.get("width"))
            digest.update(f"{facts}\n".encode())
        return digest.hexdigest()


def build_train_loader(
    dataset: Records,
    mapper: Mapper,
    total_batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    filter_empty: bool = False,
    *,
    draw: Mapping[str, int] | None = None,
    views: int | None = None,
    unlabeled: UnlabeledImages | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> TrainLoader:
    """Loader of one training process.

    Args:
        dataset: a registered name, several (joined), or Detectron2's standard dicts.
        mapper: makes a model input from a record, e.g. :class:`mokd_det.data.DetrDatasetMapper`.
        total_batch_size: samples per batch over all processes.
        num_workers: loading processes; no influence on the batches.
        seed: of order and augmentation, non-negative.
        filter_empty: leave out images without boxes.
        draw: train on a part of the images, ``count`` of them by ``seed`` (:func:`~mokd_det.data.sampling.drawn`).
        views: augment each image in so many ways only, which take turns by epoch; each input then has a "view_key"
            (:func:`~mokd_det.data.view_key.view_key`), by which a cache finds what it holds of it. None: augment
            anew in every epoch.
        unlabeled: images without annotations, of which every batch has some more, marked as "unlabeled"; those that are
            labelled here are left out.
        rank, world_size: None: Detectron2's.

    Returns:
        An endless iterable of lists of model inputs.

    Raises:
        DatasetError: data that cannot be used; while iterating also errors of the mapper, from workers too.
        ConfigError: a batch size that does not fit the number of processes, a negative seed or worker count, fewer
            than 1 views, or a draw of more images than there are.
    """
    found = _resolve(dataset, filter_empty)
    records = [found[index] for index in drawn(len(found), draw)]

    def batches_of(size: int, total: int) -> EpochBatches:
        here = comm.get_rank() if rank is None else rank
        processes = comm.get_world_size() if world_size is None else world_size
        return EpochBatches(size, total, seed=seed, rank=here, world_size=processes, views=views)

    batches: EpochBatches | MixedBatches = batches_of(len(records), total_batch_size)
    if unlabeled is not None:
        more = unlabeled.records(records)
        batches = MixedBatches(batches, batches_of(len(more), unlabeled.total_batch_size))
        records = [*records, *more]
    return TrainLoader(records, mapper, batches, num_workers)


def build_test_loader(
    dataset: Records, mapper: Mapper, batch_size: int = 1, num_workers: int = 0
) -> DataLoader[list[Record]]:
    """Loader of one evaluating process: its contiguous share of the data, in order, each record exactly once, in lists
    of model inputs; with a length, as ``detectron2.evaluation.inference_on_dataset`` needs it.

    Raises:
        DatasetError: data that cannot be used; while iterating also errors of the mapper, from workers too.
        ConfigError: a batch size below 1 or a negative worker count.
    """
    records = _resolve(dataset, filter_empty=False)
    return build_share_loader(_MappedRecords(records, mapper), batch_size, num_workers)


class _MappedRecords(Dataset[Any]):
    """Mapped records by index."""

    def __init__(self, records: Sequence[Record], mapper: Mapper) -> None:
        # serialised into one buffer: forked workers share it, where lists of dicts would be copied by their counters
        self.records = DatasetFromList(list(records), copy=False, serialize=True)
        self._mapper = PicklableWrapper(mapper)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record | Failure:
        return or_failure(self._map, index)

    def _map(self, index: int) -> Record:
        record = self.records[index]
        sample = self._mapper(record)
        if sample is None:
            raise DatasetError(
                f"the mapper returned nothing for {record.get('file_name', f'record {index}')}"
            )
        return sample


class _TrainSamples(Dataset[Any]):
    """Mapped records by :class:`SampleKey`, augmented with random numbers that only the key decides."""

    def __init__(self, mapped: _MappedRecords, seed: int) -> None:
        self._mapped = mapped
        self._seed = seed

    def __getitem__(self, key: SampleKey) -> Record | Failure:
        with augmentation_rng(self._seed, key):
            sample = self._mapped[key.record]
        if key.view is None or isinstance(sample, Failure):
            return sample
        return or_failure(lambda: {**sample, "view_key": view_key(key, sample.get("image"))})


def _resolve(dataset: Records, filter_empty: bool) -> list[Record]:
    if isinstance(dataset, str):
        return load_dataset_dicts(dataset, filter_empty=filter_empty)
    entries: list[Any] = list(dataset)
    if not entries:
        raise DatasetError("the data set is empty: neither a name nor a record")
    if not isinstance(entries[0], Mapping):
        return load_dataset_dicts(entries, filter_empty=filter_empty)
    records = [record for record in entries if has_boxes(record)] if filter_empty else entries
    if not records:
        raise DatasetError("no image with boxes in the data set")
    return records
