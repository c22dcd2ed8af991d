"""Distillation that sets in gradually, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from mokd_det.errors import ConfigError

__all__ = ["WarmUp"]


class WarmUp:
    """Scales terms by min(1, (⌊epoch⌋ + 1) / epochs).

    Epochs count from 1 here, as in mdistiller, so the factor is never 0. ReviewKD's and ReviewKD++'s releases count
    from 0: their first epoch trains without distillation and ours is one epoch ahead. A balancer that takes
    logarithms has no use for a factor 0, and a constant one cancels in the gradient of log L.

    Args:
        epochs: length; 0: none.

    Raises:
        ConfigError: negative.
    """

    def __init__(self, epochs: float = 0) -> None:
        if epochs < 0:
            raise ConfigError(f"warmup_epochs={epochs} is negative; it is 0 (none) or more")
        self.epochs = epochs

    def factor(self, epoch: float) -> float:
        """The factor after ``epoch`` passes over the training set; it changes with full epochs only."""
        return min(1.0, (math.floor(epoch) + 1) / self.epochs) if self.epochs else 1.0

    def __call__(self, terms: Mapping[str, Tensor], epoch: float) -> dict[str, Tensor]:
        """The terms, scaled."""
        factor = self.factor(epoch)
        return dict(terms) if factor == 1.0 else {name: factor * value for name, value in terms.items()}
