"""Logarithms of the objectives and the raw weights they amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

__all__ = ["LogObjective", "per_objective"]


def per_objective(
    values: Mapping[str, float] | Sequence[float] | float, names: Sequence[str], key: str, device: Any = "cpu"
) -> Tensor:
    """A configured number per objective as a (K,) float64 tensor.

    Args:
        values: name → number (every objective must be named), K numbers in order, or one number for all.
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
        min_losses: floors L_i^min: per name, in order, or one for all (an entropy floor of smoothed labels,
            say).
        eps: keeps the logarithm of a solved objective finite (FAMO's 1e-8). A larger one, such as 1e-4, stops
            an objective that is almost solved from taking nearly all of the raw weight.

    Raises:
        ConfigError: ``eps`` not positive.
    """

    def __init__(
        self, min_losses: Mapping[str, float] | Sequence[float] | float = 0.0, eps: float = 1e-8
    ) -> None:
        if not eps > 0:
            raise ConfigError(f"balancer.eps must be positive, not {eps!r}")
        self._configured = min_losses
        self.eps = float(eps)
        self.min_losses = torch.zeros(0, dtype=torch.float64)

    def setup(self, names: Sequence[str], device: Any) -> None:
        """Resolve the floors for these objectives."""
        self.min_losses = per_objective(self._configured, names, "balancer.min_losses", device)

    def shifted(self, losses: Tensor) -> Tensor:
        """D (K,) float64 of detached losses (K,)."""
        return (losses.detach().double() - self.min_losses).clamp(min=0) + self.eps

    def raw_weights(self, weights: Tensor, losses: Tensor, total: float | None) -> Tensor:
        """Weights of ∇L_i for given weights of ∇log D_i.

        Args:
            weights: π (K,).
            losses: (K,), global means.
            total: what the raw weights add up to; None: π_i / D_i as it is. With 1 this is FAMO's
                normalisation a_i = (π_i / D_i) / Σ_j (π_j / D_j): the gradient is a convex combination of the
                raw gradients, so clipping and loss scaling keep their meaning.

        Returns:
            (K,) float64.
        """
        raw = weights / self.shifted(losses)
        return raw if total is None else total * raw / raw.sum()
