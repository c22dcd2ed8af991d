"""Images of other classes to contrast an image with, drawn anew for each showing."""

from __future__ import annotations

import numpy as np

from mokd_det.errors import ConfigError

__all__ = ["NegativeSampler"]

_NEGATIVE_STREAM = 4


class NegativeSampler:
    """Positions of N images that are not of an image's class, uniformly among all of them."""

    def __init__(self, labels: np.ndarray, count: int, seed: int) -> None:
        """
        Args:
            labels: (size,) int64, of the whole data set.
            count: N. Drawn without repetition where there are as many, else with.

        Raises:
            ConfigError: N below 1, or only one class in the data set.
        """
        if count < 1:
            raise ConfigError(f"negatives={count}: must be 1 or more")
        counts = np.bincount(labels)
        if counts.max(initial=0) == len(labels):
            raise ConfigError(
                f"negatives={count}: the data set has one class only, so no image has a negative"
            )
        # Sorted by class, the images of all other classes are what is left after cutting one stretch out.
        self._by_class = np.argsort(labels, kind="stable")
        self._ends = np.cumsum(counts)
        self._counts = counts
        self._count = count
        self._seed = seed

    def draw(self, label: int, position: int) -> np.ndarray:
        """(N,) int64, positions in the data set, for the sample of this class at this position of the training."""
        own = int(self._counts[label])
        others = len(self._by_class) - own
        generator = np.random.default_rng([_NEGATIVE_STREAM, self._seed, position])
        drawn = generator.choice(others, self._count, replace=self._count > others, shuffle=False)
        drawn[drawn >= self._ends[label] - own] += own
        return self._by_class[drawn]
