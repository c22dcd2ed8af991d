"""Decoupled knowledge distillation (Zhao et al., CVPR 2022), for classifiers and for the class heads of detectors."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import ClassWiseMethod
from mokd_det.distillation.requirements import hard_targets, require_positive
from mokd_det.distillation.rows import check_comparable, pair_rows
from mokd_det.distillation.taps import Specs, Taps
from mokd_det.distillation.warmup import WarmUp
from mokd_det.errors import ConfigError, IncompatibleModelsError, require_choice

__all__ = ["DKD", "TargetClass"]

TargetClass = Literal["label", "teacher"]
Head = Literal["softmax", "sigmoid"]


class DKD(ClassWiseMethod):
    """KL(teacher ‖ student) of class probabilities, split at the target class y into two terms.

    A row is an image's logits or, at a tap of tokens, those of a query on a decoder level. With temperature T, s and t
    the logits divided by T, and means over rows:

    * ``head="softmax"``: ``tckd`` = T² KL of the pairs (p_y, 1 − p_y), p the softmax; ``nckd`` = T² KL of the softmax
      over the classes other than y. Undivided, KL = tckd + (1 − p_y) nckd: weighing nckd by a constant is the point.
    * ``head="sigmoid"``: each class is a binary classifier of its own, b_c = (σ_c, 1 − σ_c). ``tckd`` = T² KL of b_y;
      ``nckd`` = T² Σ_{c≠y} KL of b_c. Undivided, the KL of all classifiers is their plain sum; apart, the few target
      classes can weigh more than the many others.

    Args:
        temperature: T.
        target: y is the image's "label", or the "teacher"'s most probable class, which needs no labels: the only
            choice for rows that are no images.
        head: how the models read their logits; the detectors of this package are "sigmoid".
        warmup_epochs: see :class:`~mokd_det.distillation.warmup.WarmUp`; published: 20.

    Raises:
        ConfigError: an unknown choice, or a temperature that is not positive.
    """

    required_taps = ("logits",)

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        target: TargetClass = "label",
        head: Head = "softmax",
        warmup_epochs: float = 0,
    ) -> None:
        super().__init__()
        require_choice("target", target, TargetClass)
        require_choice("head", head, Head)
        require_positive("temperature", temperature)
        self.temperature, self.target, self.head = temperature, target, head
        self.warm_up = WarmUp(warmup_epochs)

    def check(self, student: Specs, teacher: Specs) -> None:
        spec_s, spec_t = student["logits"], teacher["logits"]
        check_comparable("logits", spec_s, spec_t)
        if spec_s.kind == "maps":
            raise IncompatibleModelsError("DKD reads vectors or tokens at the tap 'logits', but found maps")
        if spec_s.kind == "tokens" and self.target == "label":
            raise ConfigError(
                "DKD: the logits are those of tokens, which have no label each; use DKD(target='teacher')"
            )
        classes = self.require_equal_classes(spec_s, spec_t)
        if classes < 2 and self.head == "softmax":
            raise IncompatibleModelsError("DKD: a softmax over 1 class is constant; use DKD(head='sigmoid')")

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        (pair,) = pair_rows("logits", student["logits"], teacher["logits"])
        target = pair.teacher.argmax(1) if self.target == "teacher" else hard_targets("DKD", context)
        split = softmax_split if self.head == "softmax" else sigmoid_split
        tckd, nckd = split(pair.student / self.temperature, pair.teacher / self.temperature, target)
        scale = self.temperature**2
        # Rounding leaves the divergence of equal rows a little below 0; a negative loss has no logarithm.
        terms = {"tckd": scale * tckd.mean().clamp_min(0), "nckd": scale * nckd.mean().clamp_min(0)}
        return self.warm_up(terms, context.epoch)


def softmax_split(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """KL of (target, rest) and KL among the rest, for logits (R, K) and classes (R,); both (R,)."""
    of_target, of_rest = [], []
    for logits in (student, teacher):
        others = drop_class(logits, target)  # (R, K − 1)
        total = logits.logsumexp(1, keepdim=True)
        pair = torch.cat((logits.gather(1, target[:, None]), others.logsumexp(1, keepdim=True)), 1)
        of_target.append(pair - total)
        of_rest.append(others.log_softmax(1))
    return _divergence(*of_target), _divergence(*of_rest)


def sigmoid_split(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """KL of the target's binary classifier and the sum of the others', for logits (R, K) and classes (R,)."""
    # KL(σ(t) ‖ σ(s)) = σ(t) (t − s) − log(1 + e^t) + log(1 + e^s)
    divergence = teacher.sigmoid() * (teacher - student) - F.softplus(teacher) + F.softplus(student)
    of_target = divergence.gather(1, target[:, None]).squeeze(1)
    return of_target, divergence.scatter(1, target[:, None], 0.0).sum(1)


def drop_class(values: Tensor, target: Tensor) -> Tensor:
    """(R, K) without column ``target`` (R,) of each row: (R, K − 1), the others in their order."""
    column = torch.arange(values.shape[1] - 1, device=values.device)
    return values.gather(1, column + (column >= target[:, None]))


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of log-probabilities (R, K), (R,)."""
    return (teacher.exp() * (teacher - student)).sum(1)
