"""Streams of batches that detection and classification share: resumable, indifferent to the number of workers, and
with errors that arrive as what they are."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader, Dataset

from mokd_det.contract import TrainingLoader
from mokd_det.data.sampling import EpochBatches
from mokd_det.data.unlabeled import MixedBatches
from mokd_det.errors import ConfigError, MoKDError

__all__ = ["EndlessLoader", "Failure", "build_share_loader", "or_failure"]

Batch = TypeVar("Batch")
Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Failure:
    """An error caused by the data, on its way from the process that met it to the one that asked for the batch.

    torch would send it too, but with the worker's traceback as its message.
    """

    error: MoKDError


def or_failure(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, or the user's error that it raises as a :class:`Failure`."""
    try:
        return function(*arguments)
    except MoKDError as error:
        return Failure(error)


class EndlessLoader(TrainingLoader[Batch]):
    """Endless training batches of this process.

    Batch k is a pure function of (seed, k, rank, number of ranks), as far as the samples and the collation are
    functions of their :class:`~mokd_det.data.sampling.SampleKey`. Each ``iter()`` starts a stream of its own,
    with its own workers, which live as long as the stream.
    """

    def __init__(
        self,
        samples: Dataset[Any],
        batches: EpochBatches | MixedBatches,
        num_workers: int = 0,
        collate: Collate = list,
    ) -> None:
        """
        Args:
            samples: indexed by :class:`~mokd_det.data.sampling.SampleKey`; a :class:`Failure` stands for a
                sample that cannot be had.
            batches: which samples a batch holds.
            num_workers: loading processes; 0: load in this process.
            collate: makes the batch from its samples, where they are loaded.

        Raises:
            ConfigError: a negative number of workers.
        """
        _check_workers(num_workers)
        self.batches = batches
        self.num_workers = num_workers
        self._samples = samples
        self._collate = partial(_collated, collate)
        self._start = 0

    @property
    def batch_size(self) -> int:
        """Samples per batch of this process."""
        return self.batches.batch_size

    @property
    def batches_per_epoch(self) -> int:
        """Batches until every record was shown once (but for an incomplete last batch)."""
        return self.batches.batches_per_epoch

    @property
    def augments_endlessly(self) -> bool:
        return self.batches.views is None

    def start_from(self, batch_index: int) -> None:
        """Let the following ``iter()`` begin at this batch, counted from the start of training; costs nothing.

        Raises:
            ConfigError: a negative index.
        """
        if batch_index < 0:
            raise ConfigError(f"the first batch is {batch_index}: must not be negative")
        self._start = batch_index

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            self._samples,
            batch_sampler=self.batches.starting_at(self._start),
            num_workers=self.num_workers,
            collate_fn=self._collate,
            worker_init_fn=_outlive_signals,
            # An own generator: else creating the workers would draw a number from torch's global one.
            generator=torch.Generator().manual_seed(self.batches.seed),
        )
        return map(_raise_failure, _with_reaped_workers(loader.__iter__))


def build_share_loader(
    samples: Dataset[Any], batch_size: int = 1, num_workers: int = 0, collate: Collate = list
) -> DataLoader[Any]:
    """Loader of one evaluating process: its contiguous share of the samples, in order, each exactly once.

    Args:
        samples: indexed by number, with a length; a :class:`Failure` stands for a sample that cannot be had.
        batch_size: samples per batch of this process.
        num_workers: loading processes.
        collate: as of :class:`EndlessLoader`.

    Returns:
        A loader with a length, as ``detectron2.evaluation.inference_on_dataset`` needs it.

    Raises:
        ConfigError: a batch size below 1 or a negative worker count.
    """
    _check_workers(num_workers)
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: must be at least 1")
    return _ShareLoader(
        samples,
        batch_size=batch_size,
        sampler=InferenceSampler(len(cast(Sized, samples))),
        num_workers=num_workers,
        collate_fn=partial(_collated, collate),
        worker_init_fn=_outlive_signals,
        generator=torch.Generator().manual_seed(0),
    )


class _ShareLoader(DataLoader[Any]):
    # torch annotates its own iterator class as the result; all that callers need of it is to be iterated.
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return map(_raise_failure, _with_reaped_workers(super().__iter__))


def _collated(collate: Collate, samples: list[Any]) -> Any:
    """The batch, or the first failure among its samples."""
    failure = next((sample for sample in samples if isinstance(sample, Failure)), None)
    return failure or or_failure(collate, samples)


def _raise_failure(batch: Any) -> Any:
    if isinstance(batch, Failure):
        error = batch.error
        try:
            raise error
        finally:
            # A frame that refers to its own exception is a cycle: it would keep the callers' frames, and so the
            # workers, until the garbage collector comes, which then waits seconds for each of them.
            del error, batch
    return batch


def _outlive_signals(worker: int) -> None:
    """Let a worker ignore SIGTERM and Ctrl-C, which a whole group of processes may get: the main process, which
    finishes its step and saves, ends its workers itself, and they end by themselves when it is gone."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


_WORKERS: weakref.WeakSet[Any] = weakref.WeakSet()


def _with_reaped_workers(begin: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """What ``begin`` returns; the processes that it starts neither outlive this one nor interrupt it at any line.

    At its exit Python sends SIGTERM to such processes and then waits for them without end. They ignore it, so the
    workers of an iterator that is still referred to then, by a cycle or a global, must be ended before.
    """
    before = set(multiprocessing.active_children())
    with _handler_of_lost_workers_kept_out():
        iterator = begin()
    workers = set(multiprocessing.active_children()) - before
    if workers:
        if not _WORKERS:
            # Registered after multiprocessing's own function, and so run before it.
            atexit.register(_end_workers, os.getpid())
        _WORKERS.update(workers)
    return iterator


def _end_workers(owner: int) -> None:
    if os.getpid() == owner:
        for worker in _WORKERS:
            if worker.is_alive():
                worker.kill()


@contextmanager
def _handler_of_lost_workers_kept_out() -> Iterator[None]:
    """Put the handler of SIGCHLD back that was there before torch's, which raises the loss of a data-loading process at
    any line: inside a half-written file, a clean-up or another handler of errors, too.

    The loader itself looks after its processes every five seconds that it waits for a batch, and raises the same error.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if in_main else None
    # A plain torch loader may have installed it earlier; torch keeps no other reference to tell it by.
    torch_came_first = getattr(before, "__module__", "").startswith("torch.utils.data.")
    yield
    if in_main and (torch_came_first or signal.getsignal(signal.SIGCHLD) is not before):
        # None stands for a handler that was not installed from Python.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None or torch_came_first else before)


def _check_workers(num_workers: int) -> None:
    if num_workers < 0:
        raise ConfigError(f"num_workers={num_workers}: must not be negative")
