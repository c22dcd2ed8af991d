"""GradNorm (Chen et al., ICML 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Forward, StepContext
from .gram_balancer import GramBalancer
from .vector_adam import VectorAdam

__all__ = ["GradNorm"]


class GradNorm(GramBalancer):
    """Learned weights that give every objective a gradient of comparable size.

    The weights w (all 1 at the start, Σ w = K always) descend Σ |w_i ‖∇L_i‖ − t_i| with the target held
    constant, t_i = mean_j(w_j ‖∇L_j‖) · r_i^α; r_i is L_i relative to its first value, divided by the mean of
    these over the objectives, so that one that lags behind gets more.

    The norms are taken over all shared parameters, or those that all objectives reach. The paper takes one shared
    layer to save time; a student whose objectives leave at different depths has no such layer. A step
    costs K backward passes.

    Args:
        alpha: strength of the pull towards equal training rates; 0: equal norms only.
        lr: step size of w (Adam).
        update_every: w moves in one of this many steps; the others take one backward pass.
        trunk_only: see :class:`GramBalancer`.

    Raises:
        ConfigError: a value out of range.
    """

    # Keeps an objective from being switched off (or turned round) for good by a step below zero.
    _LEAST_WEIGHT = 1e-3
    # An objective may be exactly 0.
    _EPS = 1e-8

    def __init__(
        self, alpha: float = 1.5, lr: float = 0.025, update_every: int = 1, trunk_only: bool = False
    ) -> None:
        super().__init__(False, update_every, trunk_only=trunk_only)
        self.requires_positive = True
        self.alpha = alpha
        self._optimizer = VectorAdam(torch.zeros(0, dtype=torch.float64), lr)
        self._first_losses = torch.zeros(0, dtype=torch.float64)
        self._norms: Tensor | None = None
        self._losses: Tensor | None = None

    def setup(self, objectives: Sequence[str], device: Any = "cpu") -> None:
        super().setup(objectives, device)
        ones = torch.ones(len(self.objectives), dtype=torch.float64, device=device)
        self._weights = ones
        self._optimizer = VectorAdam(ones.clone(), self._optimizer.lr)
        self._first_losses = torch.full_like(ones, torch.nan)

    def solve(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        self._norms = gram.diagonal().clamp(min=0).sqrt()
        self._losses = losses
        return self._weights

    def after_step(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        norms, losses = self._norms, self._losses
        self._norms = self._losses = None
        super().after_step(forwards, context)
        if norms is None or losses is None:
            return {}
        usable = losses.isfinite().all()
        unset = self._first_losses.isnan()
        self._first_losses = torch.where(usable & unset, losses, self._first_losses)
        progress = (losses + self._EPS) / (self._first_losses + self._EPS)
        rates = progress / progress.mean()
        sizes = self._optimizer.value * norms
        moved = self._optimizer.step((sizes - sizes.mean() * rates**self.alpha).sign() * norms)
        value = self._optimizer.value
        positive = value.clamp(min=self._LEAST_WEIGHT)
        value.copy_(torch.where(moved, positive * (len(self.objectives) / positive.sum()), value))
        self._weights = value.clone()
        return {}

    def _state(self) -> dict[str, Any]:
        own = {"optimizer": self._optimizer.state_dict(), "first_losses": self._first_losses.clone()}
        return super()._state() | own

    def _load_state(self, state: Mapping[str, Any]) -> None:
        super()._load_state(state)
        self._optimizer.load_state_dict(state["optimizer"])
        self._first_losses = state["first_losses"].to(self._first_losses)
