"""Uncertainty weighting (Kendall, Gal & Cipolla, CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Balancer, Forward, StepContext
from .collectives import all_reduce_mean
from .single_backward import weighted_backward
from .vector_adam import VectorAdam

__all__ = ["UncertaintyWeighting"]


class UncertaintyWeighting(Balancer):
    """½ Σ (e^{−s_i} L_i + s_i) with learned log-variances s, 0 at the start.

    At the best s the value is ½ Σ log L_i plus a constant: the method approaches the sum of logarithms, that
    is :class:`Amortized` with π frozen at 1/K, apart from scale.

    Args:
        lr: step size of s (Adam; its gradient is ½ (1 − e^{−s_i} L_i)).
        update_every: s moves in one of this many steps, along that step's losses.

    Raises:
        ConfigError: a value out of range.
    """

    requires_positive = True

    def __init__(self, lr: float = 0.01, update_every: int = 1) -> None:
        super().__init__(update_every)
        self._optimizer = VectorAdam(torch.zeros(0, dtype=torch.float64), lr)
        self._losses: Tensor | None = None

    def setup(self, objectives: Sequence[str], device: Any = "cpu") -> None:
        super().setup(objectives, device)
        zeros = torch.zeros(len(self.objectives), dtype=torch.float64, device=device)
        self._optimizer = VectorAdam(zeros, self._optimizer.lr)

    def backward(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        weights = 0.5 * torch.exp(-self._optimizer.value)
        self._losses = weighted_backward(forwards, context, weights)
        return self._named("raw_weight", weights)

    def after_step(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        losses, self._losses = self._losses, None
        if losses is not None and (context.iteration + 1) % self.update_every == 0:
            losses = all_reduce_mean(losses)
            self._optimizer.step(0.5 * (1 - torch.exp(-self._optimizer.value) * losses))
        return {}

    def _state(self) -> dict[str, Any]:
        return {"log_variances": self._optimizer.state_dict()}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self._optimizer.load_state_dict(state["log_variances"])
