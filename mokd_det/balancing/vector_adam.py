"""Adam and AdamW for a balancer's handful of numbers, with steps that can be refused without a host read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

__all__ = ["VectorAdam"]


class VectorAdam:
    """The update rules of ``torch.optim.Adam`` and ``torch.optim.AdamW`` for one vector.

    They are written out because a gradient that is not finite must leave the vector, the moments and the step
    count untouched, and asking the accelerator whether it is finite would stall every training step.

    Args:
        value: start value (K,), float64; :attr:`value` is updated in place.
        lr: step size.
        weight_decay: decay of the vector towards 0.
        decoupled: True: AdamW, value ← (1 − lr · weight_decay) · value; False: Adam, where the decay joins
            the gradient.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.

    Raises:
        ConfigError: ``lr`` or ``weight_decay`` negative.
    """

    def __init__(
        self,
        value: Tensor,
        lr: float,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        for key, number in (("lr", lr), ("weight_decay", weight_decay)):
            if not number >= 0:
                raise ConfigError(f"balancer.{key} must be at least 0, not {number!r}")
        self.value = value
        self.lr, self.weight_decay, self.decoupled = lr, weight_decay, decoupled
        self.betas, self.eps = betas, eps
        self.first_moment = torch.zeros_like(value)
        self.second_moment = torch.zeros_like(value)
        self.steps = torch.zeros((), dtype=value.dtype, device=value.device)

    @torch.no_grad()
    def step(self, gradient: Tensor) -> Tensor:
        """One descent step along ``gradient`` (K,); nothing changes unless all of it is finite.

        Returns whether the step was taken: a boolean scalar on the device.
        """
        beta1, beta2 = self.betas
        steps = self.steps + 1
        value = self.value
        if self.decoupled:
            value = value * (1 - self.lr * self.weight_decay)
        else:
            gradient = gradient + self.weight_decay * value
        first = beta1 * self.first_moment + (1 - beta1) * gradient
        second = beta2 * self.second_moment + (1 - beta2) * gradient.square()
        root = second.sqrt() / (1 - beta2**steps).sqrt() + self.eps
        value = value - self.lr / (1 - beta1**steps) * first / root
        accepted = gradient.isfinite().all()
        for current, new in (
            (self.value, value),
            (self.first_moment, first),
            (self.second_moment, second),
            (self.steps, steps),
        ):
            current.copy_(torch.where(accepted, new, current))
        return accepted

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the value, the moments and the step count."""
        return {
            "value": self.value.clone(),
            "first_moment": self.first_moment.clone(),
            "second_moment": self.second_moment.clone(),
            "steps": self.steps.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; continues with the same bits."""
        self.value.copy_(state["value"])
        self.first_moment.copy_(state["first_moment"])
        self.second_moment.copy_(state["second_moment"])
        self.steps.copy_(state["steps"])
