"""Fixed weights: the plain weighted sum of the objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Balancer, Forward, StepContext
from .log_objective import PerObjective, per_objective
from .single_backward import weighted_backward

__all__ = ["FixedWeights"]


class FixedWeights(Balancer):
    """Σ w_i L_i with constant w, the usual multi-loss training.

    Args:
        weights: name → weight, K weights in order, or one for all; the losses' own coefficients come on top.

    Raises:
        ConfigError: (in :meth:`setup`) names or number of weights that do not fit the objectives.
    """

    def __init__(self, weights: PerObjective = 1.0) -> None:
        super().__init__()
        self._configured = weights
        self._weights = torch.zeros(0, dtype=torch.float64)

    def setup(self, objectives: Sequence[str], device: Any = "cpu") -> None:
        super().setup(objectives, device)
        self._weights = per_objective(self._configured, self.objectives, "balancer.weights", device)

    def backward(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        weighted_backward(forwards, context, self._weights)
        return {}
