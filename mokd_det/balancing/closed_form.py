"""The exact balanced step: minimum-norm weights of the log-gradients (Eqs. 9–12, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mokd_det.errors import ConfigError

from .base import StepContext
from .gram_balancer import GramBalancer
from .log_objective import PerObjective
from .min_norm import MAX_OBJECTIVES, min_norm_weights_of_live

__all__ = ["ClosedForm"]


class ClosedForm(GramBalancer):
    """g* = Σ π_i g_i with π* = argmin over the simplex of ½ ‖Σ π_i g_i‖², g_i = ∇log D_i.

    Costs K backward passes and holds K gradients of the parameters. An objective whose gradient vanishes is left out of
    the step (``docs/theory.md``); opposite gradients give g* = 0, a Pareto-stationary point for this batch.

    Args:
        update_every: π* is computed in one of this many steps and applied in all.
        total: see :class:`LogObjective`; 1 as for :class:`Amortized`, so that an absolute gradient clip means the same
            for both. None: g* itself.
        min_losses, eps: see :class:`LogObjective`.
        trunk_only, lag: see :class:`GramBalancer`.

    Raises:
        ConfigError: a value out of range; (in :meth:`setup`) more than 8 objectives.
    """

    def __init__(
        self,
        update_every: int = 1,
        total: float | None = 1.0,
        min_losses: PerObjective = 0.0,
        eps: float = 1e-8,
        trunk_only: bool = False,
        lag: bool = False,
    ) -> None:
        super().__init__(True, update_every, min_losses, eps, total, trunk_only, lag)

    def setup(self, objectives: Sequence[str], device: Any = "cpu") -> None:
        if len(objectives) > MAX_OBJECTIVES:
            raise ConfigError(
                f"{type(self).__name__} solves at most {MAX_OBJECTIVES} objectives, got {len(objectives)}: "
                "group the losses or take another balancer"
            )
        super().setup(objectives, device)

    def solve(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        return min_norm_weights_of_live(gram)
