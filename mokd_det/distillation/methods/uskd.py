"""Universal self-knowledge distillation (Yang et al., ICCV 2023): distillation without a teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import hard_targets, require_known
from mokd_det.distillation.taps import Specs, Taps
from mokd_det.distillation.vectors import image_vectors
from mokd_det.errors import ConfigError

__all__ = ["USKD"]


class USKD(Method):
    """Soft labels from the student itself, beside the task's cross-entropy.

    With p the student's class probabilities, w those of a linear head on a middle layer, and y the image's class:

    * ``target``: −mean (p_y² + 1 − batch mean of p_y²) log p_y, the weight held constant;
    * ``nontarget``: cross-entropy, among the classes ≠ y, with Zipf's law: the class of rank r has a share 1/r. Ranks
      follow w_c / (1 − w_y) + log p_c / (1 − log p_y), held constant (the release mixes probability and logarithm so);
    * ``weak``: cross-entropy of the middle head with labels smoothed by 0.1.

    Published weights 1, 0.1 and 0.005 for DeiT-Ti, 0.1 each for ResNet-18 on CIFAR-100. Both taps are the student's:
    "logits" and "middle" (vectors, tokens whose first one counts, or maps, which are averaged).

    Args:
        mixed_labels: targets are mixed (mixup); the two heaviest classes of an image are its targets, with their
            shares in the place of 1. The weight of ``target`` can then be negative, so the term is signed.
    """

    needs_teacher = False
    student_only_taps = ("logits", "middle")
    required_taps = ("logits", "middle")
    tap_kinds = {"logits": "vectors"}

    def __init__(self, mixed_labels: bool = False) -> None:
        super().__init__()
        self.mixed_labels = mixed_labels
        self.signed_terms = frozenset({"target"}) if mixed_labels else frozenset()

    def build_for(self, student: Specs, teacher: Specs) -> None:
        self.weak_head = nn.Linear(student["middle"].channels[-1], student["logits"].channels[0])

    def _targets(self, context: MethodContext, classes: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The images' classes (B, 1 or 2), their shares, and the whole distribution (B, K) where it is mixed."""
        if not self.mixed_labels:
            if context.targets is not None and context.targets.ndim > 1:
                raise ConfigError(
                    "USKD: the batch's targets are mixed or smoothed; use USKD(mixed_labels=True)"
                )
            target = hard_targets("USKD", context)[:, None]
            return target, torch.ones_like(target, dtype=torch.float32), None
        mixed = require_known("USKD", context, "targets")
        if mixed.ndim == 1:
            mixed = F.one_hot(mixed, classes).float()
        shares, target = mixed.topk(2, dim=1)
        return target, shares, mixed

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        logits = image_vectors(student["logits"])
        weak = self.weak_head(image_vectors(student["middle"]))
        target, shares, mixed = self._targets(context, logits.shape[1])
        shares = shares.to(logits.dtype)
        log_p, log_w = logits.log_softmax(1), weak.log_softmax(1)

        log_p_target = log_p.gather(1, target)
        squares = log_p_target.detach().exp().square()
        weight = torch.where(shares == 0, 0.0, squares + shares - squares.mean(0, keepdim=True))
        of_target = -(weight * log_p_target).sum(1).mean()

        labels = F.one_hot(target[:, 0], logits.shape[1]).to(logits) if mixed is None else mixed.to(logits)
        smoothed = 0.9 * labels + 0.1 / logits.shape[1]
        of_weak = -(smoothed * log_w).sum(1).mean()

        others = torch.ones_like(logits, dtype=torch.bool).scatter_(1, target, False)
        of_rest = -(self._zipf(log_p.detach(), log_w.detach().exp(), target, others)
                    * logits.masked_fill(~others, -torch.inf).log_softmax(1).masked_fill(~others, 0.0))  # fmt: skip
        return {"target": of_target, "nontarget": of_rest.sum(1).mean(), "weak": of_weak}

    @staticmethod
    def _zipf(log_p: Tensor, w: Tensor, target: Tensor, others: Tensor) -> Tensor:
        """Shares (B, K) of the classes by rank, 0 for the targets, each row summing to 1."""
        shares = [
            values / (1 - values.gather(1, target).sum(1, keepdim=True) + 1e-6) for values in (w, log_p)
        ]
        # Two sorts: the classes by rank, then the rank of each class.
        ranks = (shares[0] + shares[1]).argsort(1, descending=True).argsort(1)
        zipf = (1 / (ranks + 1).to(log_p)) * others
        return zipf / zipf.sum(1, keepdim=True)
