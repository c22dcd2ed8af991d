"""Minimum-norm weights of the gradients at the taps instead of at all parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

from .base import Forward, StepContext
from .closed_form import ClosedForm
from .collectives import all_reduce_mean, all_reduce_sum, world_size
from .log_objective import PerObjective
from .single_backward import weighted_backward

__all__ = ["ClosedFormTaps"]


class ClosedFormTaps(ClosedForm):
    """π* from ∂log D_i/∂z, z the shared representation, then one backward pass of Σ a_i L_i.

    Where z separates the shared parameters from the losses, ∇_θ log D_i = (∂z/∂θ)ᵀ ∂log D_i/∂z, hence ‖Σ π_i ∇_θ log
    D_i‖ ≤ ‖∂z/∂θ‖ ‖Σ π_i ∂log D_i/∂z‖: the norm that is minimised bounds the exact one (Sener & Koltun's MGDA-UB) and
    the weights differ from :class:`ClosedForm`'s; ``docs/theory.md`` measures by how much. Parameters behind the taps
    (heads, decoder) do not enter. If one tap feeds another, paths through both count twice.

    Needs K partial backward passes from the losses to the taps and one full one: nearly free when the taps are close to
    the losses. With m > 1 micro-batches each is run forward twice, because π* belongs to all of them.

    Args: as :class:`ClosedForm`, without ``trunk_only``: no parameter enters G.

    Raises:
        ConfigError: (in :meth:`backward`) the model offers no tap with a graph.
    """

    def __init__(
        self,
        update_every: int = 1,
        total: float | None = 1.0,
        min_losses: PerObjective = 0.0,
        eps: float = 1e-8,
        lag: bool = False,
    ) -> None:
        super().__init__(update_every, total, min_losses, eps, lag=lag)

    def _backward_with_new_weights(
        self, forwards: Sequence[Forward], context: StepContext
    ) -> Mapping[str, Tensor | float]:
        if len(forwards) == 1:
            measured = forwards[0](sync=True)
            gram, losses = self._tap_gram(measured, context), measured.detach().double().clone()
            forwards = [lambda *, sync=True: measured]
        else:
            gram, losses = self._sum_over(forwards, context)
        losses = all_reduce_mean(losses)
        # Every rank and micro-batch has samples, hence coordinates of z, of its own.
        gram = all_reduce_sum(gram) / (world_size() * len(forwards)) ** 2
        weights = self._solved_weights(self._of_objectives(gram, losses), losses, context)
        raw = self._raw_weights(weights, losses)
        weighted_backward(forwards, context, raw)
        return {**self._scalars(weights, raw), **self._relations(gram, losses)}

    def _sum_over(self, forwards: Sequence[Forward], context: StepContext) -> tuple[Tensor, Tensor]:
        grams, losses = [], []
        for forward in forwards:
            measured = forward(sync=False)
            grams.append(self._tap_gram(measured, context, keep_graph=False))
            losses.append(measured.detach().double())
        return torch.stack(grams).sum(0), torch.stack(losses).mean(0)

    def _tap_gram(self, losses: Tensor, context: StepContext, keep_graph: bool = True) -> Tensor:
        """⟨∂L_i/∂z, ∂L_j/∂z⟩ on this rank, without the loss scale: (K, K) float64."""
        taps = [tap for tap in context.taps() if tap.requires_grad]
        if not taps:
            raise ConfigError(
                f"{type(self).__name__} needs the student's taps, but the model offers none with a graph: "
                "distil through taps or take closed_form"
            )
        rows = []
        for index, objective in enumerate((losses * context.loss_scale).unbind()):
            keep = keep_graph or index + 1 < len(losses)
            rows.append(torch.autograd.grad(objective, taps, retain_graph=keep, allow_unused=True))
        gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=losses.device)
        for place, tap in enumerate(taps):
            of_tap = [torch.zeros_like(tap) if row[place] is None else row[place] for row in rows]
            wide = torch.stack(of_tap).flatten(1).double()
            gram.addmm_(wide, wide.T)
        scale = torch.as_tensor(context.loss_scale, dtype=torch.float64, device=gram.device)
        return gram / scale.square()
