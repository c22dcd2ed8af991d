"""Loaders: batches for training and evaluation, the same whatever the number of worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset

from mokd_det.data.catalog import has_boxes, load_dataset_dicts
from mokd_det.data.sampling import EpochBatches, SampleKey, sample_rng
from mokd_det.errors import ConfigError, DatasetError, MoKDError

__all__ = ["TrainLoader", "build_test_loader", "build_train_loader"]

Record = dict[str, Any]
Mapper = Callable[[Record], Record]
Records = str | Sequence[str] | Sequence[Record]


class TrainLoader:
    """Endless training batches of this process.

    Batch k is a pure function of (seed, k, rank, number of ranks): the records from a permutation per epoch,
    the augmentation from generators that are seeded for each sample. Each ``iter()`` starts a stream of its
    own, with its own workers, which live as long as the stream.
    """

    def __init__(
        self, records: Sequence[Record], mapper: Mapper, batches: EpochBatches, num_workers: int = 0
    ) -> None:
        """
        Args:
            records: Detectron2's standard dicts; kept in one serialised buffer that the workers share.
            mapper: makes a model input from a record.
            batches: which records a batch holds.
            num_workers: loading processes; 0: load in this process.

        Raises:
            ConfigError: a negative number of workers.
        """
        _check_workers(num_workers)
        self.batches = batches
        self.num_workers = num_workers
        self._samples = _TrainSamples(records, mapper, batches.seed)
        self._start = 0

    @property
    def batch_size(self) -> int:
        """Samples per batch of this process."""
        return self.batches.batch_size

    @property
    def batches_per_epoch(self) -> int:
        """Batches until every record was shown once (but for an incomplete last batch)."""
        return self.batches.batches_per_epoch

    def start_from(self, batch_index: int) -> None:
        """Let the following ``iter()`` begin at this batch, counted from the start of training; costs
        nothing.

        Raises:
            ConfigError: a negative index.
        """
        if batch_index < 0:
            raise ConfigError(f"the first batch is {batch_index}: must not be negative")
        self._start = batch_index

    def __iter__(self) -> Iterator[list[Record]]:
        loader = DataLoader(
            self._samples,
            batch_sampler=self.batches.starting_at(self._start),
            num_workers=self.num_workers,
            collate_fn=_as_list,
            # An own generator: else creating the workers would draw a number from torch's global one.
            generator=torch.Generator().manual_seed(self.batches.seed),
        )
        return map(_raise_failure, loader)


def build_train_loader(
    dataset: Records,
    mapper: Mapper,
    total_batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    filter_empty: bool = False,
    *,
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
        rank: of this process; None: Detectron2's.
        world_size: number of processes; None: Detectron2's.

    Returns:
        An endless iterable of lists of model inputs.

    Raises:
        DatasetError: data that cannot be used; while iterating also errors of the mapper, from workers too.
        ConfigError: a batch size that does not fit the number of processes, a negative seed or worker count.
    """
    records = _resolve(dataset, filter_empty)
    batches = EpochBatches(
        len(records),
        total_batch_size,
        seed=seed,
        rank=comm.get_rank() if rank is None else rank,
        world_size=comm.get_world_size() if world_size is None else world_size,
    )
    return TrainLoader(records, mapper, batches, num_workers)


def build_test_loader(
    dataset: Records, mapper: Mapper, batch_size: int = 1, num_workers: int = 0
) -> DataLoader[list[Record]]:
    """Loader of one evaluating process: its contiguous share of the data, in order, each record exactly once.

    Args:
        dataset: a registered name, several (joined), or Detectron2's standard dicts.
        mapper: makes a model input from a record.
        batch_size: images per batch of this process.
        num_workers: loading processes.

    Returns:
        A loader of lists of model inputs, with a length, as ``detectron2.evaluation.inference_on_dataset``
        needs it.

    Raises:
        DatasetError: data that cannot be used; while iterating also errors of the mapper, from workers too.
        ConfigError: a batch size below 1 or a negative worker count.
    """
    _check_workers(num_workers)
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: must be at least 1")
    records = _resolve(dataset, filter_empty=False)
    return _TestLoader(
        _TestSamples(records, mapper),
        batch_size=batch_size,
        sampler=InferenceSampler(len(records)),
        num_workers=num_workers,
        collate_fn=_as_list,
        generator=torch.Generator().manual_seed(0),
    )


class _Failure:
    """An error caused by the data, on its way from the process that met it to the one that asked for the
    batch.

    torch would send it too, but with the worker's traceback as its message.
    """

    def __init__(self, error: MoKDError) -> None:
        self.error = error


class _TestLoader(DataLoader[list[Record]]):
    def __iter__(self) -> Iterator[list[Record]]:  # type: ignore[override]
        return map(_raise_failure, super().__iter__())


class _TestSamples(Dataset[Any]):
    """Mapped records by index."""

    def __init__(self, records: Sequence[Record], mapper: Mapper) -> None:
        # serialised into one buffer: forked workers share it, where lists of dicts would be copied by their
        # counters
        self._records = DatasetFromList(list(records), copy=False, serialize=True)
        self._mapper = PicklableWrapper(mapper)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record | _Failure:
        try:
            return self._map(index)
        except MoKDError as error:
            return _Failure(error)

    def _map(self, index: int) -> Record:
        record = self._records[index]
        sample = self._mapper(record)
        if sample is None:
            raise DatasetError(
                f"the mapper returned nothing for {record.get('file_name', f'record {index}')}"
            )
        return sample


class _TrainSamples(_TestSamples):
    """Mapped records by :class:`SampleKey`, augmented with random numbers that only the key decides."""

    def __init__(self, records: Sequence[Record], mapper: Mapper, seed: int) -> None:
        super().__init__(records, mapper)
        self._seed = seed

    def __getitem__(self, key: SampleKey) -> Record | _Failure:  # type: ignore[override]
        with sample_rng(self._seed, key.position):
            return super().__getitem__(key.record)


def _raise_failure(batch: list[Record | _Failure]) -> list[Record]:
    for sample in batch:
        if isinstance(sample, _Failure):
            error = sample.error
            try:
                raise error
            finally:
                # A frame that refers to its own exception is a cycle: it would keep the callers' frames, and
                # so the workers, until the garbage collector comes, which then waits seconds for each of
                # them.
                del error, sample, batch
    return batch  # type: ignore[return-value]


def _as_list(batch: list[Any]) -> list[Any]:
    return batch


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


def _check_workers(num_workers: int) -> None:
    if num_workers < 0:
        raise ConfigError(f"num_workers={num_workers}: must not be negative")
