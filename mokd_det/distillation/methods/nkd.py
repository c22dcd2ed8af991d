"""Normalised knowledge distillation (Yang et al., ICCV 2023)."""

from __future__ import annotations

from torch import Tensor

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import ClassWiseMethod
from mokd_det.distillation.methods.dkd import drop_class
from mokd_det.distillation.requirements import hard_targets, require_positive
from mokd_det.distillation.taps import Specs, Taps
from mokd_det.distillation.vectors import vector_pair

__all__ = ["NKD"]


class NKD(ClassWiseMethod):
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

    tap_kinds = {"logits": "vectors"}

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        require_positive("temperature", temperature)
        self.temperature = temperature

    def check(self, student: Specs, teacher: Specs) -> None:
        super().check(student, teacher)
        self.require_equal_classes(student["logits"], teacher["logits"])

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        logits_s, logits_t = vector_pair("logits", student, teacher)
        target = hard_targets("NKD", context)
        weight = logits_t.softmax(1).gather(1, target[:, None])
        of_target = weight * logits_s.log_softmax(1).gather(1, target[:, None])
        others_s, others_t = (
            drop_class(logits, target) / self.temperature for logits in (logits_s, logits_t)
        )
        of_rest = (others_t.softmax(1) * others_s.log_softmax(1)).sum(1)
        return {"target": -of_target.mean(), "nontarget": -(self.temperature**2) * of_rest.mean()}
