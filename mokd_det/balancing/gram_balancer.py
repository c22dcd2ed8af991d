"""Common ground of the balancers that compute weights from the Gram matrix of the objectives' gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Balancer, Forward, StepContext
from .conflict import gram_scalars
from .log_objective import LogObjective, PerObjective
from .objective_gradients import ObjectiveGradients
from .single_backward import adaptive_backward, weighted_backward

__all__ = ["GramBalancer"]


class GramBalancer(Balancer):
    """Weights w = solve(G) of this very step's gradients, applied to them.

    In one of ``update_every`` steps, K backward passes give the K gradients and their Gram matrix over the
    shared parameters; the other steps apply the last weights in a single backward pass. Private parameters
    receive the same weighted sum and never enter G. Micro-batches and ranks are averaged before anything
    nonlinear, so the step equals one process with one big batch.

    Args:
        log_gradients: True: g_i = ∇log D_i (MoKD); False: g_i = ∇L_i.
        update_every: see above.
        min_losses, eps, total: with ``log_gradients``, see :class:`LogObjective`.
        trunk_only: G over the parameters alone that every objective has a gradient in; the others add to its
            diagonal only.
        lag: apply the weights of the last solution, 1/K at first, as Algorithm 1 of the preprint does.

    Raises:
        ConfigError: ``total`` not positive.
    """

    def __init__(
        self,
        log_gradients: bool,
        update_every: int = 1,
        min_losses: PerObjective = 0.0,
        eps: float = 1e-8,
        total: float | None = None,
        trunk_only: bool = False,
        lag: bool = False,
    ) -> None:
        super().__init__(update_every)
        self.log_gradients = log_gradients
        self.requires_positive = log_gradients
        self.total, self.trunk_only, self.lag = total, trunk_only, lag
        self._log = LogObjective(min_losses, eps, total)
        self._weights = torch.zeros(0, dtype=torch.float64)
        self._pending: Tensor | None = None
        self._solved = False

    def setup(self, objectives: Sequence[str], device: Any = "cpu") -> None:
        super().setup(objectives, device)
        self._log.setup(self.objectives, device)
        count = len(self.objectives)
        self._weights = torch.full((count,), 1 / count, dtype=torch.float64, device=device)
        self._solved = False

    @abstractmethod
    def solve(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """Weights (K,) from the Gram matrix (K, K) and the objectives (K,); float64, equal on all ranks."""

    def backward(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        if self._solved and context.iteration % self.update_every:
            self._pending = None
            return self._scalars(self._weights, self._backward_with_last_weights(forwards, context))
        return self._backward_with_new_weights(forwards, context)

    def _backward_with_new_weights(
        self, forwards: Sequence[Forward], context: StepContext
    ) -> Mapping[str, Tensor | float]:
        gradients = ObjectiveGradients(context)
        losses = gradients.collect(forwards)
        raw_gram = gradients.gram(self.trunk_only)
        weights = self._solved_weights(self._of_objectives(raw_gram, losses), losses, context)
        raw = self._raw_weights(weights, losses)
        gradients.release(raw)
        return {**self._scalars(weights, raw), **self._relations(raw_gram, losses)}

    def _solved_weights(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """What this step applies; the solution is kept for :meth:`after_step`."""
        self._pending = self.solve(gram, losses, context)
        return self._weights if self.lag else self._pending

    def _backward_with_last_weights(self, forwards: Sequence[Forward], context: StepContext) -> Tensor:
        """A single backward pass; returns the raw weights (K,)."""
        if not self.log_gradients:
            weighted_backward(forwards, context, self._weights)
            return self._weights
        _, raw = adaptive_backward(forwards, context, lambda losses: self._raw_weights(self._weights, losses))
        return raw

    def _of_objectives(self, raw_gram: Tensor, losses: Tensor) -> Tensor:
        """Gram matrix of the g_i from that of the ∇L_i."""
        if not self.log_gradients:
            return raw_gram
        shifted = self._log.shifted(losses)
        return raw_gram / torch.outer(shifted, shifted)

    def _relations(self, raw_gram: Tensor, losses: Tensor) -> dict[str, Tensor]:
        """Conflict and dominance of the ∇L_i, and of the g_i where these are others."""
        shifted = self._log.shifted(losses) if self.log_gradients else None
        return gram_scalars(raw_gram, self.objectives, shifted)

    def _raw_weights(self, weights: Tensor, losses: Tensor) -> Tensor:
        return self._log.raw_weights(weights, losses) if self.log_gradients else weights

    def _scalars(self, weights: Tensor, raw: Tensor) -> dict[str, Tensor | float]:
        return self._named("pi", weights) | self._named("raw_weight", raw)

    def after_step(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        if self._pending is not None:
            self._weights = torch.where(self._pending.isfinite().all(), self._pending, self._weights)
            self._solved = True
            self._pending = None
        return {}

    def _state(self) -> dict[str, Any]:
        return {"weights": self._weights.clone(), "solved": self._solved}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self._weights = state["weights"].to(self._weights)
        self._solved = bool(state["solved"])
