"""A control: a balancer's direction with the length of the plain sum's gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

from .base import Balancer, Forward, StepContext
from .objective_gradients import ObjectiveGradients, scale_gradients

__all__ = ["SumNorm"]


class SumNorm(Balancer):
    """g · ‖Σ ∇L_i‖ / ‖g‖ for the gradient g of another balancer: its direction, but no change of the step's length.

    Weights of logarithms change the effective learning rate; with SGD, or where gradients are clipped, a balancer may
    win by that alone. Norms are over the shared parameters; private ones get the same factor. A direction of length 0
    stays 0.

    Costs one backward pass and one gradient of memory more than the balancer.

    Args:
        balancer: whose direction is taken.

    Raises:
        ConfigError: ``balancer`` is none.
    """

    def __init__(self, balancer: Balancer) -> None:
        if not isinstance(balancer, Balancer):
            raise ConfigError(f"balancer.balancer must be a balancer, not {balancer!r}")
        super().__init__()
        self.balancer = balancer
        self.requires_positive = balancer.requires_positive

    def setup(self, objectives: Sequence[str], device: Any = "cpu") -> None:
        super().setup(objectives, device)
        self.balancer.setup(objectives, device)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.balancer.check_optimizer(optimizer)

    def backward(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        gradients = ObjectiveGradients(context)
        gradients.clear()
        summing = [_SummingForward(forward, context, len(forwards)) for forward in forwards]
        scalars = dict(self.balancer.backward(summing, context))
        gradients.add_row(_total([forward.gradient for forward in summing]))
        of_sum, of_balancer = gradients.partial_gram(
            range(len(gradients.shared_parameters)), [[p.grad for p in gradients.shared_parameters]]
        ).diagonal()
        factor = torch.where(of_balancer > 0, (of_sum / of_balancer).sqrt(), torch.ones_like(of_sum))
        parameters = [*context.shared_parameters, *context.private_parameters]
        scale_gradients([parameter.grad for parameter in parameters], factor)
        gradients.add_earlier()
        return {**scalars, "sum_norm/factor": factor}

    def after_step(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        return self.balancer.after_step(forwards, context)

    def _state(self) -> dict[str, Any]:
        return {"balancer": self.balancer.state_dict()}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.balancer.load_state_dict(state["balancer"])


class _SummingForward:
    """A forward that also keeps the gradient of the sum of its objectives, from its first call with a graph."""

    def __init__(self, forward: Forward, context: StepContext, micro_batches: int) -> None:
        self._forward = forward
        self._parameters = [p for p in context.shared_parameters if p.requires_grad]
        self._factor = context.loss_scale / micro_batches
        self.gradient: list[Tensor | None] = []

    def __call__(self, *, sync: bool = True) -> Tensor:
        losses = self._forward(sync=sync)
        if torch.is_grad_enabled() and not self.gradient:
            # Unlike backward(), this leaves the data-parallel wrapper's hooks to the balancer.
            total = losses.sum() * self._factor
            self.gradient = [
                *torch.autograd.grad(total, self._parameters, retain_graph=True, allow_unused=True)
            ]
        return losses


def _total(gradients: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """Sum over the micro-batches, parameter by parameter."""
    total: list[Tensor | None] = []
    for of_parameter in zip(*gradients, strict=True):
        present = [gradient for gradient in of_parameter if gradient is not None]
        total.append(torch.stack(present).sum(0) if len(present) > 1 else present[0] if present else None)
    return total
