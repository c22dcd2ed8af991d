"""Distillation of class probabilities: KL divergence to the teacher's, or its decision as a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import require_positive
from mokd_det.distillation.row_losses import weighted_mean
from mokd_det.distillation.rows import RowPair
from mokd_det.distillation.taps import Specs
from mokd_det.errors import IncompatibleModelsError, require_choice

__all__ = ["HardDistillation", "LogitDistillation"]

Reduction = Literal["batchmean", "numel"]


class _OnLogits(Method):
    """Reads one tap, "logits": vectors (B, K), or tokens (B, Q, K) for a detector's queries."""

    required_taps = ("logits",)

    def check(self, student: Specs, teacher: Specs) -> None:
        """As every method, and of equal classes; no tap but "logits"."""
        others = sorted(set(student) - {"logits"})
        if others:
            raise IncompatibleModelsError(
                f"{type(self).__name__} reads the tap 'logits' and nothing else, but {others[0]!r} is given too; "
                f"Combined gives each method its own taps"
            )
        super().check(student, teacher)
        classes = student["logits"].channels, teacher["logits"].channels
        if classes[0] != classes[1]:
            raise IncompatibleModelsError(
                f"the student predicts {classes[0][0]} classes and the teacher {classes[1][0]}: {type(self).__name__} "
                f"compares class by class; give both the same num_classes, or distil features only"
            )


class LogitDistillation(_OnLogits):
    """KL(softmax(z_t / T) ‖ softmax(z_s / T)) · T², one term ``kl`` (Hinton et al., 2015).

    The factor T² keeps the gradient's scale independent of T. With ``reduction="numel"`` and T = 1 this is the soft
    distillation that DeiT's code computes: there the mean is taken over samples *and* classes, which makes it K times
    smaller than the divergence.

    Args:
        temperature: T.
        reduction: divide the sum by the number of "batchmean" rows, or "numel", rows times classes.

    Raises:
        ConfigError: a temperature that is not positive, an unknown reduction.
    """

    def __init__(self, temperature: float = 1.0, reduction: Reduction = "batchmean") -> None:
        super().__init__()
        require_positive("temperature", temperature)
        require_choice("reduction", reduction, Reduction)
        self.temperature, self.reduction = temperature, reduction

    def compare(self, pairs: Mapping[str, list[RowPair]]) -> dict[str, Tensor]:
        (pair,) = pairs["logits"]
        scale = self.temperature
        log_s = F.log_softmax(pair.student / scale, dim=1)
        log_t = F.log_softmax(pair.teacher / scale, dim=1)
        per_row = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)
        # The exact value is not negative; rounding at equality is, and has no logarithm.
        divergence = weighted_mean(per_row, pair.weights).clamp_min(0) * scale**2
        return {"kl": divergence / pair.student.shape[1] if self.reduction == "numel" else divergence}


class HardDistillation(_OnLogits):
    """Cross-entropy with the teacher's decision, argmax z_t, as the label; one term ``hard`` (DeiT, Eq. 3)."""

    def __init__(self) -> None:
        super().__init__()

    def compare(self, pairs: Mapping[str, list[RowPair]]) -> dict[str, Tensor]:
        (pair,) = pairs["logits"]
        per_row = F.cross_entropy(pair.student, pair.teacher.argmax(1), reduction="none")
        return {"hard": weighted_mean(per_row, pair.weights)}
