"""One backward pass of a weighted sum of the objectives, over all micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .base import Forward, StepContext
from .collectives import all_reduce_mean

__all__ = ["adaptive_backward", "mean_losses", "weighted_backward"]


def mean_losses(forwards: Sequence[Forward]) -> Tensor:
    """Objectives of the step without gradients, averaged over micro-batches and ranks: (K,) float64."""
    with torch.no_grad():
        total = torch.stack([forward(sync=False).detach().double() for forward in forwards]).mean(0)
    return all_reduce_mean(total)


def weighted_backward(
    forwards: Sequence[Forward], context: StepContext, weights: Tensor | Callable[[Tensor], Tensor]
) -> Tensor:
    """Backward of Σ a_i L_i, averaged over the micro-batches; ranks are averaged by the data-parallel wrapper.

    Args:
        forwards: one per micro-batch; the last one synchronises.
        context: of the step.
        weights: a (K,) without graph, equal on all ranks; or a function that returns it, called with the detached
            objectives (K,) float64 of each micro-batch on this rank.

    Returns:
        Detached objectives (K,) float64 of this rank, averaged over the micro-batches.
    """
    seen = []
    for index, forward in enumerate(forwards):
        losses = forward(sync=index == len(forwards) - 1)
        seen.append(losses.detach().double())
        applied = weights(seen[-1]) if callable(weights) else weights
        total = (applied.to(losses) * losses).sum() * (context.loss_scale / len(forwards))
        total.backward()
    return torch.stack(seen).mean(0)


def adaptive_backward(
    forwards: Sequence[Forward],
    context: StepContext,
    weights: Callable[[Tensor], Tensor],
    each_micro_batch: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`weighted_backward` with weights that depend on the losses themselves.

    A single micro-batch's own forward tells its losses. With several, a forward of each without gradients comes first,
    so that all are weighted by their joint mean.

    Args:
        forwards, context: as there.
        weights: objectives (K,) float64, averaged over ranks → a (K,).
        each_micro_batch: weight each micro-batch by its own losses and save the first forwards.

    Returns:
        Objectives and weights, (K,) float64 each: those of the step, or with ``each_micro_batch`` of the last one.
    """
    if len(forwards) > 1 and not each_micro_batch:
        losses = mean_losses(forwards)
        applied = weights(losses)
        weighted_backward(forwards, context, applied)
        return losses, applied
    latest: list[Tensor] = []

    def of_own_losses(own: Tensor) -> Tensor:
        losses = all_reduce_mean(own.clone())
        latest[:] = [losses, weights(losses)]
        return latest[1]

    weighted_backward(forwards, context, of_own_losses)
    return latest[0], latest[1]
