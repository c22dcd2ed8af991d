"""A fixed share of the gradient for the distillation (RT-DETRv4's gradient-guided adaptive modulation, 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

from .base import Forward, StepContext
from .gram_balancer import GramBalancer

__all__ = ["GradientShare"]


class GradientShare(GramBalancer):
    """w L_distill + Σ L_other, with w kept so that distillation has a set share of the gradient norm.

    With p the mean over a period of w ‖∇L_distill‖ / (w ‖∇L_distill‖ + ‖Σ ∇L_other‖), a period ends with

        w ← w · p* (1 − p) / (p (1 − p*)),    p* = p clipped to [share − tolerance, share + tolerance],

    the factor clipped to [0.1, 10]: where the norms stay, the share is then p*, the nearer edge of the band.

    The published form looks at the detector's encoder once an epoch, 11 ± 1 % for its smallest model. Here norms are
    over the parameters that all objectives reach, in one of ``update_every`` steps; a measured step costs K
    backward passes, the others one.

    Args:
        period: steps from one update of w to the next, an epoch as published.
        objective: whose share it is.
        share: wanted, between 0 and 1.
        tolerance: half the width of the band in which w is left alone.
        weight: w at the start.
        update_every: measure in one of this many steps.
        trunk_only: False: norms over all shared parameters.

    Raises:
        ConfigError: a value out of range; (in :meth:`setup`) no such objective, or no other one.
    """

    _FACTORS = (0.1, 10.0)

    def __init__(
        self,
        period: int,
        objective: str = "distill",
        share: float = 0.11,
        tolerance: float = 0.01,
        weight: float = 1.0,
        update_every: int = 1,
        trunk_only: bool = True,
    ) -> None:
        super().__init__(False, update_every, trunk_only=trunk_only)
        if not isinstance(period, int) or period < update_every:
            raise ConfigError(
                f"balancer.period must be a whole number of at least update_every={update_every}, not {period!r}"
            )
        if not 0 <= tolerance < share < 1 - tolerance:
            raise ConfigError(
                f"balancer.share ± balancer.tolerance must lie between 0 and 1, not {share!r} ± {tolerance!r}"
            )
        if not weight > 0:
            raise ConfigError(f"balancer.weight must be positive, not {weight!r}")
        self.period, self.objective, self.share, self.tolerance = period, objective, share, tolerance
        self._start = float(weight)
        self._measured: Tensor | None = None

    def setup(self, objectives: Sequence[str], device: Any = "cpu") -> None:
        super().setup(objectives, device)
        self._require_one_of_several(self.objective)
        self._index = self.objectives.index(self.objective)
        self._weights = torch.ones(len(self.objectives), dtype=torch.float64, device=device)
        self._weights[self._index] = self._start
        self._sum = torch.zeros((), dtype=torch.float64, device=device)
        self._count = torch.zeros_like(self._sum)

    def solve(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        others = torch.ones_like(self._weights)
        others[self._index] = 0
        own = self._weights[self._index] * gram[self._index, self._index].clamp(min=0).sqrt()
        self._measured = own / (own + (others @ gram @ others).clamp(min=0).sqrt())
        return self._weights

    def after_step(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        measured, self._measured = self._measured, None
        super().after_step(forwards, context)
        scalars: dict[str, Tensor | float] = {}
        if measured is not None:
            scalars[f"gradient_share/{self.objective}"] = measured
            usable = measured.isfinite()
            self._sum = self._sum + torch.where(usable, measured, 0.0)
            self._count = self._count + usable
        if (context.iteration + 1) % self.period == 0:
            found = self._sum / self._count
            wanted = found.clamp(self.share - self.tolerance, self.share + self.tolerance)
            factor = (wanted * (1 - found) / (found * (1 - wanted))).clamp(*self._FACTORS)
            weights = self._weights.clone()
            weights[self._index] *= torch.where(factor.isnan(), 1.0, factor)
            self._weights = weights
            self._sum, self._count = torch.zeros_like(self._sum), torch.zeros_like(self._count)
        return scalars

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "share_sum": self._sum.clone(), "share_count": self._count.clone()}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        super()._load_state(state)
        self._sum = state["share_sum"].to(self._sum)
        self._count = state["share_count"].to(self._count)
