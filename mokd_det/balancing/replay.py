"""A control: the weights that another run learned, replayed in time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from .recorded_weights import RecordedWeights, WeightsOf

__all__ = ["Replay"]


class Replay(RecordedWeights):
    """π(t) of another run (another seed, say), open loop: a schedule in the place of feedback.

    Linear between that run's records, constant before the first and after the last. Where this control equals the run
    it comes from, the balancer is a schedule: nothing that it does depends on this run's gradients.

    Args: as :class:`RecordedWeights`; ``of="losses"`` replays the factors of the ∇L_i instead of π.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        of: WeightsOf = "logarithms",
        total: float | None = 1.0,
        min_losses: Mapping[str, float] | Sequence[float] | float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(run, of, total, min_losses, eps)

    def weights_at(self, iteration: int) -> np.ndarray:
        iterations = self._iterations.numpy()
        return np.array([np.interp(iteration, iterations, column) for column in self._table.numpy().T])
