"""Which samples a batch holds and which random numbers augment them: pure functions of seed and position.

Nothing here keeps a running state, so a training run can continue at any batch, with another number of
workers, and sees exactly what an uninterrupted run would have seen.
"""

# ruff: noqa: NPY002  (augmentations of Detectron2's kind draw from numpy's global generator)

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from mokd_det.errors import ConfigError, DatasetError

__all__ = ["EpochBatches", "SampleKey", "sample_rng"]

# Keeps the permutations' random stream apart from the samples' under the same user seed.
_PERMUTATION_STREAM = 1
_SAMPLE_STREAM = 2


class SampleKey(NamedTuple):
    """A place in the endless stream of training samples, and the record shown there.

    Attributes:
        position: counts the samples of all ranks from the start of training; seeds the augmentation.
        record: index in the data set.
    """

    position: int
    record: int


class EpochBatches(Sampler[list[SampleKey]]):
    """Endless batches of one rank: every epoch is a fresh permutation, cut into batches, the remainder left
    out.

    The union of all ranks' batch k depends on seed, k and the total batch size only, not on the number of
    ranks.
    """

    def __init__(
        self,
        size: int,
        total_batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        """
        Args:
            size: records of the data set.
            total_batch_size: samples per batch, summed over ranks.
            seed: non-negative.
            rank: this process.
            world_size: number of processes.
            start: first batch of the iteration.

        Raises:
            ConfigError: a batch size that is not a positive multiple of ``world_size``, or a negative seed or
                start.
            DatasetError: fewer records than one batch needs.
        """
        if total_batch_size < 1 or total_batch_size % world_size:
            raise ConfigError(
                f"total_batch_size={total_batch_size}: must be a positive multiple of the number of "
                f"processes ({world_size})"
            )
        if seed < 0:
            raise ConfigError(f"seed={seed}: must not be negative")
        if start < 0:
            raise ConfigError(f"the first batch is {start}: must not be negative")
        if size < total_batch_size:
            raise DatasetError(
                f"the data set has {size} images, fewer than one batch (total_batch_size={total_batch_size})"
            )
        self.size = size
        self.total_batch_size = total_batch_size
        self.batch_size = total_batch_size // world_size
        self.batches_per_epoch = size // total_batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def starting_at(self, batch: int) -> EpochBatches:
        """The same stream from another batch on."""
        return EpochBatches(
            self.size,
            self.total_batch_size,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            start=batch,
        )

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, within = divmod(self.start, self.batches_per_epoch)
        while True:
            order = np.random.default_rng([_PERMUTATION_STREAM, self.seed, epoch]).permutation(self.size)
            for batch in range(within, self.batches_per_epoch):
                offset = batch * self.total_batch_size + self.rank * self.batch_size
                first = epoch * self.batches_per_epoch * self.total_batch_size + offset
                records = order[offset : offset + self.batch_size].tolist()
                yield [SampleKey(first + i, record) for i, record in enumerate(records)]
            epoch, within = epoch + 1, 0


@contextmanager
def sample_rng(seed: int, position: int) -> Iterator[None]:
    """Seed python's, numpy's and torch's (CPU) global generators for one sample; on exit they are as before.

    Args:
        seed: of the run, non-negative.
        position: of the sample (:class:`SampleKey`).
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence([_SAMPLE_STREAM, seed, position]).generate_state(6)
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
