"""Grouping of named losses into objectives, by configuration only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

__all__ = ["Objectives"]


class Objectives:
    """Sums a model's named losses into K objectives (Remark A.1: K is free).

    Any model that returns a dict of scalar losses can be used; a sum may weigh its terms. Each loss must belong to
    exactly one objective and each objective must have a loss, so that a misspelt pattern cannot silently leave
    something out of the training.

    Example:
        >>> objectives = Objectives({"distill": ["loss_distill_*"], "task": ["loss_ce*", "loss_bbox*", "loss_giou*"]})
        >>> objectives(model(batch))  # (2,)

    Args:
        patterns: objective name → patterns of loss names (``fnmatch``: ``*``, ``?``, ``[abc]``; case counts),
            or one pattern, or a mapping pattern → weight of such a loss in the objective's sum (1 where it
            is a list). Their order is the order of the objectives.

    Raises:
        ConfigError: no objective, an empty name, an objective without patterns, or a weight that is not positive.
    """

    def __init__(self, patterns: Mapping[str, Sequence[str] | str | Mapping[str, float]]) -> None:
        if not isinstance(patterns, Mapping) or not patterns:
            raise ConfigError(
                f"objectives must map each objective's name to patterns of loss names, got {patterns!r}"
            )
        self.patterns: dict[str, tuple[str, ...]] = {}
        self._pattern_weights: dict[str, dict[str, float]] = {}
        for name, listed in patterns.items():
            group = (listed,) if isinstance(listed, str) else tuple(listed or ())
            if not isinstance(name, str) or not name:
                raise ConfigError(f"objectives: {name!r} is not a name")
            if not group or not all(isinstance(pattern, str) and pattern for pattern in group):
                raise ConfigError(
                    f"objectives.{name} must list patterns of loss names such as 'loss_box*', got {listed!r}"
                )
            self.patterns[name] = group
            weights = listed if isinstance(listed, Mapping) else dict.fromkeys(group, 1.0)
            for pattern, weight in weights.items():
                number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
                if not number or not math.isfinite(weight) or weight <= 0:
                    raise ConfigError(
                        f"objectives.{name}: the weight of '{pattern}' must be a number above 0, got {weight!r}"
                    )
            self._pattern_weights[name] = {pattern: float(weight) for pattern, weight in weights.items()}
        self._groups: dict[tuple[str, ...], tuple[tuple[tuple[str, float], ...], ...]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objectives, in order."""
        return tuple(self.patterns)

    def __len__(self) -> int:
        return len(self.patterns)

    def group(self, loss_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Which losses each objective sums; a ConfigError if a loss has no objective or two, or an objective none."""
        members: dict[str, list[str]] = {name: [] for name in self.patterns}
        for loss in loss_names:
            owners = [
                name
                for name, group in self.patterns.items()
                if any(fnmatchcase(loss, pattern) for pattern in group)
            ]
            if len(owners) != 1:
                found = "no objective" if not owners else f"several objectives ({', '.join(owners)})"
                raise ConfigError(
                    f"loss '{loss}' matches {found}; objectives = {self._shown()} must cover each loss once"
                )
            members[owners[0]].append(loss)
        for name, losses in members.items():
            if not losses:
                raise ConfigError(
                    f"objectives.{name} = {list(self.patterns[name])} matches none of the model's losses "
                    f"({', '.join(loss_names) or 'it returned none'})"
                )
        return {name: tuple(losses) for name, losses in members.items()}

    def weight(self, objective: str, loss: str) -> float:
        """The weight of a loss in its objective's sum; a ConfigError if the patterns that match it give it several."""
        matching = {
            pattern: weight
            for pattern, weight in self._pattern_weights[objective].items()
            if fnmatchcase(loss, pattern)
        }
        if len(set(matching.values())) != 1:
            raise ConfigError(f"objectives.{objective} gives loss '{loss}' several weights: {matching}")
        return next(iter(matching.values()))

    def __call__(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Objectives of one micro-batch, (K,) float32, or float64 if a loss is; with the losses' graph.

        Half precision is summed in float32.

        Raises:
            ConfigError: see :meth:`group`; or a loss that is not a scalar tensor.
        """
        key = tuple(losses)
        if key not in self._groups:
            for name, value in losses.items():
                if not isinstance(value, Tensor) or value.numel() != 1:
                    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise ConfigError(f"loss '{name}' must be a scalar tensor, found {found}")
            self._groups[key] = tuple(
                tuple((loss, self.weight(name, loss)) for loss in members)
                for name, members in self.group(key).items()
            )
        wide = any(value.dtype == torch.float64 for value in losses.values())
        scalars = {n: v.reshape(()).to(torch.float64 if wide else torch.float32) for n, v in losses.items()}
        terms = (
            [scalars[name] if weight == 1.0 else weight * scalars[name] for name, weight in members]
            for members in self._groups[key]
        )
        return torch.stack([torch.stack(of_objective).sum() for of_objective in terms])

    def _shown(self) -> str:
        return "{" + ", ".join(f"{name}: {list(group)}" for name, group in self.patterns.items()) + "}"
