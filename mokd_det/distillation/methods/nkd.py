"""Normalised knowledge distillation (Yang et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.methods.dkd import drop_class
from mokd_det.distillation.requirements import (
    hard_targets,
    known_class_names,
    require_equal_classes,
    require_kind,
)
from mokd_det.distillation.taps import TapValue
from mokd_det.distillation.vectors import vector_pair
from mokd_det.errors import ConfigError
from mokd_det.layers.tap_point import TapSpec

__all__ = ["NKD"]


class NKD(Method):
    """Cross-entropies of the target class and, normalised among themselves, of the others.

    With y the image's class, p the softmax at temperature 1, and q the softmax of logits / T over the classes ≠ y:

        target = −mean p_t(y) log p_s(y),    nontarget = −T² mean Σ_{c≠y} q_t(c) log q_s(c)

    Published weights: target 1, nontarget γ = 1.5 (ImageNet, T = 1) or 3.5 (CIFAR-100, T = 3), added to the task's
    cross-entropy. The release's mask leaves no class out of q; its text and this class do.

    Args:
        temperature: T.

    Raises:
        ConfigError: a temperature that is not positive.
    """

    required_taps = ("logits",)

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"temperature={temperature} must be above 0")
        self.temperature = temperature
        self._class_names: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None)

    def inspect(self, student: nn.Module, teacher: nn.Module | None) -> None:
        self._class_names = known_class_names(student), known_class_names(teacher)

    def check(self, student: Mapping[str, TapSpec], teacher: Mapping[str, TapSpec]) -> None:
        require_kind("NKD", "logits", "vectors", student, teacher)
        require_equal_classes("NKD", student["logits"], teacher["logits"], self._class_names)

    def compare_taps(
        self, student: Mapping[str, TapValue], teacher: Mapping[str, TapValue], context: MethodContext
    ) -> dict[str, Tensor]:
        """``target`` and ``nontarget``."""
        logits_s, logits_t = vector_pair("logits", student, teacher)
        target = hard_targets("NKD", context)
        weight = logits_t.softmax(1).gather(1, target[:, None])
        of_target = weight * logits_s.log_softmax(1).gather(1, target[:, None])
        others_s, others_t = (
            drop_class(logits, target) / self.temperature for logits in (logits_s, logits_t)
        )
        of_rest = (others_t.softmax(1) * others_s.log_softmax(1)).sum(1)
        return {"target": -of_target.mean(), "nontarget": -(self.temperature**2) * of_rest.mean()}
