"""Amortised balancing: weights learned from what each step did to the losses (FAMO, NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mokd_det.errors import ConfigError, require_choice

from .base import Balancer, Forward, StepContext
from .log_objective import LogObjective, PerObjective
from .single_backward import adaptive_backward, mean_losses
from .vector_adam import VectorAdam

__all__ = ["Amortized"]

PiOptimizer = Literal["adamw", "adam"]
Accumulation = Literal["exact", "micro"]
Improvement = Literal["log", "relative"]


class Amortized(Balancer):
    """One backward pass per step; π follows the min-norm weights over time.

    With logits w (0 at the start) and π = softmax(w), each step

    1. minimises Σ (π_i / c) log D_i, c = Σ π_i / D_i held constant: the gradient is Σ a_i ∇L_i with
       a_i = (π_i / D_i) / c, a convex combination of the raw gradients;
    2. lets the trainer's optimiser step;
    3. evaluates the same batch again, without gradients and with the same random masks: L';
    4. moves w along (∂π/∂w)ᵀ δ, δ_i = log D_i − log D'_i: an objective that improved more loses weight. To
       first order δ is the step's gain along ∇log L_i, so this descends ½ ‖Σ π_i ∇log L_i‖².

    Data-parallel: L and L' are averaged over the ranks before any logarithm, so π is the same everywhere and
    the gradient is that of one process with the joint batch. A step the GradScaler refuses leaves w alone, as
    do losses that are not finite.

    Accumulation over m micro-batches: with ``accumulation="exact"`` an additional forward of every
    micro-batch without gradients finds the mean losses first, and the step equals one big batch (up to what
    depends on the batch itself, such as BatchNorm); step 3 evaluates all micro-batches. ``"micro"`` takes a
    from each micro-batch's own losses (a first-order error in their spread) and δ from the last one only: m
    forwards less in step 1 and m − 1 less in step 3. With m = 1 both are the same and neither costs anything.

    Args:
        pi_optimizer: "adamw": decoupled weight decay, as the MoKD text says; "adam": the decay joins the
            gradient, as in FAMO's code. The choice matters: with "adam" the decay outweighs a typical δ of
            1e-3 and π stays near its start (``docs/theory.md``).
        lr: step size of the logits.
        weight_decay: decay of the logits.
        update_every: steps 3 and 4 run in one of this many steps; the forward of step 3 is saved in the others.
        min_losses, eps: see :class:`LogObjective`.
        pi_min: least weight of an objective, 0 ≤ pi_min < 1/K: π = pi_min + (1 − K · pi_min) softmax(w).
        total: sum of the raw weights a. 1 is FAMO's; K makes a plain SGD step comparable to the sum of the
            losses (AdamW does not notice); None: Σ π_i ∇log D_i itself, whose length changes as the losses fall.
        improvement: δ_i: "log" as above, or "relative": (D_i − D'_i) / D_i, Eq. 6 of the preprint. They differ by half
            their square.
        accumulation: "exact" or "micro", see above.

    Raises:
        ConfigError: a value that is out of range.
    """

    requires_positive = True

    def __init__(
        self,
        pi_optimizer: PiOptimizer = "adamw",
        lr: float = 0.025,
        weight_decay: float = 0.01,
        update_every: int = 1,
        min_losses: PerObjective = 0.0,
        eps: float = 1e-8,
        pi_min: float = 0.0,
        total: float | None = 1.0,
        accumulation: Accumulation = "exact",
        improvement: Improvement = "log",
    ) -> None:
        super().__init__(update_every)
        require_choice("balancer.pi_optimizer", pi_optimizer, PiOptimizer)
        require_choice("balancer.accumulation", accumulation, Accumulation)
        require_choice("balancer.improvement", improvement, Improvement)
        self._decoupled = pi_optimizer == "adamw"
        self._lr, self._weight_decay = lr, weight_decay
        self._log = LogObjective(min_losses, eps, total)
        self.pi_min, self.total = pi_min, total
        self.accumulation, self.improvement = accumulation, improvement
        self._before: Tensor | None = None
        self._optimizer = self._new_optimizer(torch.zeros(0, dtype=torch.float64))

    def setup(self, objectives: Sequence[str], device: Any = "cpu") -> None:
        super().setup(objectives, device)
        count = len(self.objectives)
        if not 0 <= self.pi_min * count < 1:
            raise ConfigError(
                f"balancer.pi_min must lie in [0, 1/{count}) for {count} objectives, not {self.pi_min!r}"
            )
        self._log.setup(self.objectives, device)
        self._optimizer = self._new_optimizer(torch.zeros(count, dtype=torch.float64, device=device))

    def _new_optimizer(self, logits: Tensor) -> VectorAdam:
        return VectorAdam(logits, self._lr, self._weight_decay, self._decoupled)

    @property
    def pi(self) -> Tensor:
        """Weights of the objectives' logarithms (K,), on the simplex, float64."""
        free = 1 - len(self.objectives) * self.pi_min
        return self.pi_min + free * torch.softmax(self._optimizer.value, 0)

    def backward(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        pi = self.pi
        losses, applied = adaptive_backward(
            forwards,
            context,
            lambda means: self._log.raw_weights(pi, means),
            each_micro_batch=self.accumulation == "micro",
        )
        self._before = losses
        shifted, total = self._log.shifted(losses), self._log.total
        balanced = (pi * shifted.log()).sum() * (1.0 if total is None else total / (pi / shifted).sum())
        return {"balanced_loss": balanced, **self._named("pi", pi), **self._named("raw_weight", applied)}

    def after_step(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        before, self._before = self._before, None
        if before is None:
            raise RuntimeError("after_step() follows a backward() whose optimiser step was taken")
        if (context.iteration + 1) % self.update_every:
            return {}
        gradient, scalars = self._logit_gradient(before, forwards)
        self._optimizer.step(gradient)
        return scalars

    def _logit_gradient(
        self, before: Tensor, forwards: Sequence[Forward]
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Descent gradient of w (K,) from the losses before the step (global means), and scalars to log."""
        after = mean_losses(forwards if self.accumulation == "exact" else forwards[-1:])
        old, new = self._log.shifted(before), self._log.shifted(after)
        gain = old.log() - new.log() if self.improvement == "log" else (old - new) / old
        share = torch.softmax(self._optimizer.value, 0)
        gradient = share * (gain - (share * gain).sum())
        return gradient, self._named(f"{self.improvement}_gain", gain)

    def _state(self) -> dict[str, Any]:
        return {"logits": self._optimizer.state_dict()}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self._optimizer.load_state_dict(state["logits"])
