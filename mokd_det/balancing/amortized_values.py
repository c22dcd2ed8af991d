"""The amortised update exactly as Eq. 15 of the preprint prints it: from loss values, without gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .amortized import Amortized
from .base import Forward

__all__ = ["AmortizedValues"]


class AmortizedValues(Amortized):
    """π descends ½ (Σ π_i log L_i)²: the literal reading of Eq. 15.

    The equation has the logarithms of the losses where the text means their gradients. Taken at its word it
    needs no second forward, but what it does depends on the units of the losses: with L = (0.5, 20) it rests
    at π_1 = 0.81, and multiplying the first loss by 10 turns the pull round. It is here for comparison;
    :class:`Amortized` is the reading that is used.

    The gradient with respect to π goes to the logits of the softmax as it is ("one should renormalize it via
    a softmax"), through the optimiser of :class:`Amortized`, whose arguments it shares.
    """

    def _logit_gradient(
        self, before: Tensor, forwards: Sequence[Forward]
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        logs = self._log.shifted(before).log()
        return (self.pi * logs).sum() * logs, {}
