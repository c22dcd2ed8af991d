"""Logarithms of the objectives and the raw weights they amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

__all__ = ["LogObjective", "PerObjective", "per_objective"]

PerObjective: TypeAlias = Mapping[str, float] | Sequence[float] | float
"""Name → number, numbers in the order of the objectives, or one for all."""


def per_objective(values: PerObjective, names: Sequence[str], key: str, device: Any = "cpu") -> Tensor:
    """A configured number per objective as a (K,) float64 tensor.

    Args:
        values: a mapping must name every objective.
        names: the objectives.
        key: configuration key for the message.
        device: where the tensor goes.

    Raises:
        ConfigError: names or length that do not fit, or something that is not a finite number.
    """
    if isinstance(values, Mapping):
        if set(values) != set(names):
            raise ConfigError(f"{key} names {sorted(values)}, but the objectives are {list(names)}")
        listed = [values[name] for name in names]
    elif isinstance(values, Sequence) and not isinstance(values, str):
        if len(values) != len(names):
            raise ConfigError(f"{key} has {len(values)} numbers for {len(names)} objectives {list(names)}")
        listed = list(values)
    else:
        listed = [values] * len(names)
    for value in listed:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
            raise ConfigError(f"{key} must hold finite numbers, found {value!r}")
    return torch.tensor(listed, dtype=torch.float64, device=device)


class LogObjective:
    """log D_i with D_i = L_i − L_i^min + eps, in float64.

    A loss below its floor counts as solved (D_i = eps), like one at the floor; NaN stays NaN.

    Args:
        min_losses: floors L_i^min (an entropy floor of smoothed labels, say).
        eps: keeps the logarithm of a solved objective finite (FAMO's 1e-8). A larger one, such as 1e-4, stops
            an objective that is almost solved from taking nearly all of the raw weight.
        total: what the raw weights add up to; None: π_i / D_i as it is. With 1 this is FAMO's normalisation
            a_i = (π_i / D_i) / Σ_j (π_j / D_j): the gradient is a convex combination of the raw gradients, so clipping
            and loss scaling keep their meaning.

    Raises:
        ConfigError: ``eps`` or ``total`` not positive.
    """

    def __init__(self, min_losses: PerObjective = 0.0, eps: float = 1e-8, total: float | None = None) -> None:
        if not eps > 0:
            raise ConfigError(f"balancer.eps must be positive, not {eps!r}")
        if total is not None and not total > 0:
            raise ConfigError(f"balancer.total must be positive or None, not {total!r}")
        self._configured = min_losses
        self.eps, self.total = float(eps), total
        self.min_losses = torch.zeros(0, dtype=torch.float64)

    def setup(self, names: Sequence[str], device: Any) -> None:
        """Resolve the floors for these objectives."""
        self.min_losses = per_objective(self._configured, names, "balancer.min_losses", device)

    def shifted(self, losses: Tensor) -> Tensor:
        """D (K,) float64 of detached losses (K,)."""
        return (losses.detach().double() - self.min_losses).clamp(min=0) + self.eps

    def raw_weights(self, weights: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,) float64 of ∇L_i for weights π (K,) of ∇log D_i; ``losses`` (K,) are global means."""
        raw = weights / self.shifted(losses)
        return raw if self.total is None else self.total * raw / raw.sum()
