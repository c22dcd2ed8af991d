"""Which samples a batch holds and which random numbers augment them: pure functions of seed and position.

Nothing here keeps a running state, so a training run can continue at any batch, with another number of
workers, and sees exactly what an uninterrupted run would have seen.
"""

# ruff: noqa: NPY002  (augmentations of Detectron2's kind draw from numpy's global generator)

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from mokd_det.errors import ConfigError, DatasetError

__all__ = ["EpochBatches", "SampleKey", "augmentation_rng", "batch_rng", "drawn", "sample_rng"]

# Keep what is drawn for one purpose apart from what is drawn for another under the same user seed.
_PERMUTATION_STREAM = 1
_SAMPLE_STREAM = 2
_BATCH_STREAM = 3
_VIEW_STREAM = 4
_DRAW_STREAM = 14


class SampleKey(NamedTuple):
    """A place in the endless stream of training samples, and the record shown there.

    Attributes:
        position: counts the samples of all ranks from the start of training; seeds the augmentation.
        record: index in the data set.
        view: which of the record's fixed views is shown; with the record it seeds the augmentation instead. None: the
            record is augmented anew wherever it is shown.
    """

    position: int
    record: int
    view: int | None = None


@dataclass(eq=False)
class EpochBatches(Sampler[list[SampleKey]]):
    """Endless batches of one rank: every epoch is a fresh permutation, cut into batches, the remainder left out.

    The union of all ranks' batch k depends on seed, k and the total batch size only, not on the number of ranks.

    With ``repeats`` R > 1 (repeated augmentation; Hoffer et al., CVPR 2020, in the form of DeiT) each record of
    the permutation stands there R times in a row, and the ranks take turns sample by sample, so that different
    ranks see differently augmented copies. An epoch stays as long as without: about one record in R is shown.

    With ``views`` V a record is only ever augmented in V ways, which take turns: epoch e shows view e mod V (with
    repeats: copy c of epoch e shows view (e R + c) mod V).

    Args:
        size: records of the data set.
        total_batch_size: samples per batch, summed over ranks.
        start: first batch of the iteration.
        repeats: R.
        views: V; None: no two augmentations of a record are alike.

    Raises:
        ConfigError: a batch size that is not a positive multiple of ``world_size``, a negative seed or
            start, or fewer than 1 repeats or views.
        DatasetError: fewer records than one batch needs.
    """

    size: int
    total_batch_size: int
    _: KW_ONLY
    seed: int
    rank: int = 0
    world_size: int = 1
    start: int = 0
    repeats: int = 1
    views: int | None = None

    def __post_init__(self) -> None:
        if self.total_batch_size < 1 or self.total_batch_size % self.world_size:
            raise ConfigError(
                f"total_batch_size={self.total_batch_size}: must be a positive multiple of the number of "
                f"processes ({self.world_size})"
            )
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: must not be negative")
        if self.start < 0:
            raise ConfigError(f"the first batch is {self.start}: must not be negative")
        if self.repeats < 1:
            raise ConfigError(f"repeats={self.repeats}: must be 1 or more")
        if self.views is not None and self.views < 1:
            raise ConfigError(
                f"views={self.views}: must be 1 or more, or None for new augmentations in every epoch"
            )
        if self.size < self.total_batch_size:
            raise DatasetError(
                f"the data set has {self.size} images, fewer than one batch (total_batch_size={self.total_batch_size})"
            )
        self.batch_size = self.total_batch_size // self.world_size
        self.batches_per_epoch = self.size // self.total_batch_size

    def starting_at(self, batch: int) -> EpochBatches:
        """The same stream from another batch on."""
        return replace(self, start=batch)

    def epoch_at(self, position: int) -> float:
        """Epochs before the batch that the sample at a position is in, as a fraction."""
        return position // self.total_batch_size / self.batches_per_epoch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, within = divmod(self.start, self.batches_per_epoch)
        while True:
            order = np.random.default_rng([_PERMUTATION_STREAM, self.seed, epoch]).permutation(self.size)
            for batch in range(within, self.batches_per_epoch):
                places = batch * self.total_batch_size + self._share
                first = epoch * self.batches_per_epoch * self.total_batch_size
                records = order[places // self.repeats]
                yield list(
                    map(SampleKey, (first + places).tolist(), records.tolist(), self._views_at(epoch, places))
                )
            epoch, within = epoch + 1, 0

    def _views_at(self, epoch: int, places: np.ndarray) -> list[int] | list[None]:
        """The views of the samples at these places of an epoch."""
        if self.views is None:
            return [None] * len(places)
        return ((epoch * self.repeats + places % self.repeats) % self.views).tolist()

    @property
    def _share(self) -> np.ndarray:
        """This rank's places in a batch of all ranks."""
        places = np.arange(self.total_batch_size)
        if self.repeats > 1:
            return places[self.rank :: self.world_size]
        return places[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]


def drawn(length: int, draw: Mapping[str, int] | None) -> list[int]:
    """Indices of the drawn records, ascending.

    Draws of one seed are nested: the smaller one is part of the larger one.

    Args:
        length: how many records there are.
        draw: ``count`` (how many of them, without repetition) and ``seed`` (non-negative, 0 by default); None: all.

    Raises:
        ConfigError: other keys, a count outside 1…length, or a negative seed.
    """
    if draw is None:
        return list(range(length))
    if not {"count"} <= set(draw) <= {"count", "seed"}:
        raise ConfigError(
            f"draw={dict(draw)}: must have count and may have seed, e.g. draw={{count: 100, seed: 0}}"
        )
    count, seed = draw["count"], draw.get("seed", 0)
    if not 1 <= count <= length:
        raise ConfigError(f"draw.count={count}: must be 1 to {length}, the number of training images")
    if seed < 0:
        raise ConfigError(f"draw.seed={seed}: must be 0 or more")
    return sorted(np.random.default_rng([_DRAW_STREAM, seed]).permutation(length)[:count].tolist())


def sample_rng(seed: int, position: int) -> AbstractContextManager[None]:
    """Seed python's, numpy's and torch's (CPU) global generators by the run's seed, non-negative, and the position of a
    sample; on exit they are as before."""
    return _seeded_generators(_SAMPLE_STREAM, seed, position)


def augmentation_rng(seed: int, key: SampleKey) -> AbstractContextManager[None]:
    """The same for a sample of a loader: seeded by its position or, with views, by its record and view."""
    if key.view is None:
        return sample_rng(seed, key.position)
    return _seeded_generators(_VIEW_STREAM, seed, key.record, key.view)


def batch_rng(seed: int, position: int) -> AbstractContextManager[None]:
    """The same for what is drawn once for a rank's batch, apart from what its samples draw; ``position`` is that of the
    batch's first sample on this rank."""
    return _seeded_generators(_BATCH_STREAM, seed, position)


@contextmanager
def _seeded_generators(stream: int, seed: int, *place: int) -> Iterator[None]:
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence([stream, seed, *place]).generate_state(6)
    random.seed(int.from_bytes(words[:2].tobytes(), "little"))
    np.random.seed(words[2:4])
    # not torch.manual_seed: that would also reseed the accelerator's generators, which belong to the model
    torch.default_generator.manual_seed(int.from_bytes(words[4:].tobytes(), "little") >> 1)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
