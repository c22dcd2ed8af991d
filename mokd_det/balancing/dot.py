"""A momentum of its own for the distillation (DOT, Zhao et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

from .base import Balancer, Forward, StepContext
from .log_objective import PerObjective, per_objective
from .objective_gradients import ObjectiveGradients, present

__all__ = ["DOT"]


class DOT(Balancer):
    """Two momenta over a plain sum: μ + Δ for the distillation, μ − Δ for everything else.

        v_d ← (μ + Δ) v_d + w_d ∇L_distill,    v_r ← (μ − Δ) v_r + Σ w_i ∇L_i,    θ ← θ − lr (v_d + v_r)

    It is an optimiser's business, but clipping, loss scaling and checkpoints know one gradient per parameter. The sum
    V = v_d + v_r obeys V ← μ V + (∇L_distill + ∇L_rest + Δ (v_d − v_r)), which is plain SGD with momentum μ on the
    gradient in brackets: this balancer leaves that gradient, and ``torch.optim.SGD`` does the rest. Weight decay thus
    keeps μ (the release: μ − Δ). As released, parameters that only one side reaches have μ.

    Clipping acts on the gradient in brackets; v_d and v_r are of unclipped gradients. A step costs K backward
    passes; v_d and v_r are two copies of the model in memory and checkpoint.

    Args:
        delta: Δ; published 0.075 (CIFAR-100), 0.09 (ImageNet).
        momentum: μ, that of the optimiser; in a config ``"${optimizer.momentum}"``.
        objective: the one with μ + Δ.
        weights: of the sum, as :class:`FixedWeights`.

    Raises:
        ConfigError: momenta outside [0, 1); (in :meth:`setup`) no such objective; (in :meth:`check_optimizer`) not SGD
            with this momentum.
    """

    def __init__(
        self,
        delta: float = 0.075,
        momentum: float = 0.9,
        objective: str = "distill",
        weights: PerObjective = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= momentum - delta <= momentum + delta < 1:
            raise ConfigError(
                "balancer.momentum ± balancer.delta must lie in [0, 1) with delta at least 0, "
                f"not {momentum!r} ± {delta!r}"
            )
        self.delta, self.momentum, self.objective = delta, momentum, objective
        self._configured = weights
        self._velocities: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}

    def setup(self, objectives: Sequence[str], device: Any = "cpu") -> None:
        super().setup(objectives, device)
        self._require_one_of_several(self.objective)
        self._weights = per_objective(self._configured, self.objectives, "balancer.weights")
        self._device = device

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.SGD):
            raise ConfigError(f"balancer DOT works with torch.optim.SGD only, not {type(optimizer).__name__}")
        for group in optimizer.param_groups:
            if group["momentum"] != self.momentum or group["nesterov"] or group["dampening"]:
                raise ConfigError(
                    f"balancer DOT needs optimizer.momentum={self.momentum} (balancer.momentum) without nesterov and "
                    f"dampening, not momentum={group['momentum']}, nesterov={group['nesterov']}, "
                    f"dampening={group['dampening']}"
                )

    def backward(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        # Velocities must be equal on all ranks for projections, too: everything is averaged before.
        everything = [*context.shared_parameters, *context.private_parameters]
        gradients = ObjectiveGradients(StepContext(everything, loss_scale=context.loss_scale))
        gradients.collect(forwards)
        distill, rest = gradients.combine(self._sides())
        gradients.restore()
        parameters, scale = gradients.shared_parameters, context.loss_scale
        before = {
            side: [self._velocities.get(f"{side}/{index}") for index in range(len(parameters))]
            for side in ("distill", "rest")
        }
        reached = {
            side: present(of_side, parameters) | present(before[side], parameters)
            for side, of_side in (("distill", distill), ("rest", rest))
        }
        deltas = self.delta * (reached["distill"] & reached["rest"]).double()
        self._pending = {}
        for index, (parameter, ours, others) in enumerate(zip(parameters, distill, rest, strict=True)):
            gradient = ours if others is None else others
            if ours is not None and others is not None:
                delta = deltas[index].to(parameter.dtype)
                fast, slow = (
                    torch.zeros_like(parameter) if velocity is None else velocity
                    for velocity in (before["distill"][index], before["rest"][index])
                )
                gradient = ours + others + delta * scale * (fast - slow)
                self._pending[f"distill/{index}"] = (self.momentum + delta) * fast + ours / scale
                self._pending[f"rest/{index}"] = (self.momentum - delta) * slow + others / scale
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return {}

    def _sides(self) -> Tensor:
        """Weights (2, K) of the objectives in the distillation and in the rest."""
        own = torch.zeros_like(self._weights)
        own[self.objectives.index(self.objective)] = 1
        return torch.stack([own, 1 - own]) * self._weights

    def after_step(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        if self._pending:
            finite = torch.stack(torch._foreach_norm(list(self._pending.values()))).isfinite().all()
            for key, value in self._pending.items():
                before = self._velocities.get(key, torch.zeros_like(value))
                self._velocities[key] = torch.where(finite, value, before).detach()
            self._pending = {}
        return {}

    def _state(self) -> dict[str, Any]:
        """The velocities, by side and position of the parameter."""
        return {"velocities": {key: value.clone() for key, value in self._velocities.items()}}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self._velocities = {key: value.to(self._device) for key, value in state["velocities"].items()}
