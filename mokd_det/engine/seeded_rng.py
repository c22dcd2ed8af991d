"""Random numbers of a forward as a pure function of where it stands in the training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded_rng", "step_seed"]


def step_seed(seed: int, iteration: int, micro_batch: int, rank: int) -> int:
    """Mix the coordinates of a forward into one 63-bit seed.

    Neighbouring coordinates give unrelated streams (numpy's ``SeedSequence``, whose output is stable across versions).
    """
    words = np.random.SeedSequence([seed, iteration, micro_batch, rank]).generate_state(1, np.uint64)
    return int(words[0]) >> 1


@contextmanager
def seeded_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every generator a model may draw from, and give the caller's states back afterwards.

    Covers ``random``, ``numpy.random``, torch's CPU generator and, for a CUDA ``device``, that device's.
    Reading and setting a CUDA generator happens on the host, so nothing is synchronised.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002  (models draw from the global one)
    cuda_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda_devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        if cuda_devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
