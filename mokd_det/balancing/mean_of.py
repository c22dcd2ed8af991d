"""A control: the mean of the weights that another run learned, held constant."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from .recorded_weights import RecordedWeights, WeightsOf

__all__ = ["MeanOf"]


class MeanOf(RecordedWeights):
    """Σ w̄_i L_i with w̄ the mean over a finished run's records: what is left of a balancer without its adaptivity.

    With two objectives a weight is one number, which a sweep finds too (Kurin et al. 2022, Xin et al. 2022). Where this
    control equals the run it comes from, the balancer has saved the sweep and no more.

    Args: as :class:`RecordedWeights`; ``of="logarithms"`` holds the mean π on the logarithms instead.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        of: WeightsOf = "losses",
        total: float | None = 1.0,
        min_losses: Mapping[str, float] | Sequence[float] | float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(run, of, total, min_losses, eps)

    def weights_at(self, iteration: int) -> np.ndarray:
        return self._table.numpy().mean(axis=0)
