"""The K gradients of a step, held one per objective, and their Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .base import Forward, StepContext
from .collectives import all_reduce_max, all_reduce_mean, world_size

__all__ = ["ObjectiveGradients", "present", "scale_gradients"]

# Elements that are flattened, exchanged or multiplied at a time: large enough to be efficient, small beside a
# model.
_BUCKET = 2**21
# Elements that are held in float64 at a time.
_WIDE = 2**19


class ObjectiveGradients:
    """Collects ∇L_i of every objective and leaves a weighted sum of them in ``.grad``.

    Each row is what one ``backward`` accumulates into ``.grad``, kept by reference: at no time are there more
    than K gradients (plus a bucket of a few million numbers), whatever the number of micro-batches. The
    data-parallel wrapper's hooks are not used (forwards run with ``sync=False``); the rows are averaged over
    the ranks here, because the Gram matrix of a mean of gradients is not the mean of Gram matrices.

    A parameter that no objective reaches keeps ``grad = None``, on every rank alike, so optimisers skip it as
    they do in plain training.

    Args:
        context: of the step; the Gram matrix is over its shared parameters.
    """

    def __init__(self, context: StepContext) -> None:
        shared = [parameter for parameter in context.shared_parameters if parameter.requires_grad]
        private = [parameter for parameter in context.private_parameters if parameter.requires_grad]
        self._parameters: list[nn.Parameter] = [*shared, *private]
        self._num_shared = len(shared)
        self._loss_scale = context.loss_scale
        self._earlier = [parameter.grad for parameter in self._parameters]
        self._rows: list[list[Tensor | None]] = []

    def collect(self, forwards: Sequence[Forward]) -> Tensor:
        """K backward passes through each micro-batch, and the average over ranks of the shared parameters' rows.

        Returns the detached objectives (K,) float64, averaged over micro-batches and ranks.
        """
        seen = []
        for forward in forwards:
            losses = forward(sync=False)
            seen.append(losses.detach().double())
            objectives = (losses * (self._loss_scale / len(forwards))).unbind()
            self._rows = self._rows or [[None] * len(self._parameters) for _ in objectives]
            for index, objective in enumerate(objectives):
                for parameter, gradient in zip(self._parameters, self._rows[index], strict=True):
                    parameter.grad = gradient
                objective.backward(inputs=self._parameters, retain_graph=index + 1 < len(objectives))
                self._rows[index] = [parameter.grad for parameter in self._parameters]
            for parameter in self._parameters:
                parameter.grad = None
            # What the last backward did not visit would otherwise live on during the next forward.
            del losses, objectives, objective
        for row in self._rows:
            self._average(row, 0, self._num_shared)
        return all_reduce_mean(torch.stack(seen).mean(0))

    @property
    def shared_parameters(self) -> list[nn.Parameter]:
        """The trainable ones of the context's shared parameters, in order."""
        return self._parameters[: self._num_shared]

    def gram(self, trunk_only: bool = False) -> Tensor:
        """⟨∇L_i, ∇L_j⟩ over the shared parameters, without the loss scale: (K, K) float64.

        ``trunk_only``: over those in which no objective's gradient is 0; one whose gradient is 0 everywhere has no say.
        """
        factors = None
        if trunk_only:
            reached = torch.stack([present(row[: self._num_shared], self._parameters) for row in self._rows])
            factors = (reached | ~reached.any(dim=1, keepdim=True)).all(dim=0).double()
        return self.partial_gram(range(self._num_shared), factors=factors)

    def add_row(self, gradient: Sequence[Tensor | None]) -> None:
        """Hold one more vector, a tensor or None per shared parameter, the loss scale in it; averages it over ranks."""
        row = [*gradient, *[None] * (len(self._parameters) - self._num_shared)]
        self._average(row, 0, self._num_shared)
        self._rows.append(row)

    def combine(self, weights: Tensor) -> list[list[Tensor | None]]:
        """Weighted sums of the rows, as new tensors, by weights (M, K).

        Returns:
            M vectors, each a tensor or None per parameter; None where every row with a weight other than 0 has none.
        """
        combined: list[list[Tensor | None]] = []
        for of_sum in weights.tolist():
            used = [(weight, row) for weight, row in zip(of_sum, self._rows, strict=True) if weight]
            combined.append([_weighted_sum(used, index) for index in range(len(self._parameters))])
        return combined

    def partial_gram(
        self,
        positions: Iterable[int],
        further: Sequence[Sequence[Tensor | None]] = (),
        factors: Tensor | None = None,
    ) -> Tensor:
        """The Gram matrix over some of the shared parameters.

        Args:
            positions: of those parameters in :attr:`shared_parameters`.
            further: M more vectors to multiply with, each a tensor (or None: zeros) per shared parameter. Their
                products are divided by the loss scale like those of the gradients, so it must be in them too,
                unless only their direction matters.
            factors: (P,) 0 or 1 per shared parameter: what it counts.

        Returns:
            (K + M, K + M) float64.
        """
        total: Tensor | None = None
        rows = [*self._rows, *further]
        used = [index for index in positions if any(row[index] is not None for row in rows)]
        for bucket in _buckets([self._parameters[index] for index in used]):
            members = [used[place] for place in bucket]
            flat = [self._flatten(row, members) for row in rows]
            if factors is not None:
                sizes = [self._parameters[index].numel() for index in members]
                repeats = torch.tensor(sizes, device=factors.device)
                of_elements = factors[members].repeat_interleave(repeats, output_size=sum(sizes))
                flat = [row * of_elements.to(row) for row in flat]
            for columns in zip(*(row.split(_WIDE) for row in flat), strict=True):
                wide = torch.stack(columns).double()
                part = wide @ wide.T
                total = part if total is None else total + part
        if total is None:
            total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=self._parameters[0].device)
        scale = torch.as_tensor(self._loss_scale, dtype=torch.float64, device=total.device)
        return total / scale.square()

    def clear(self) -> None:
        """Empty every ``.grad``; :meth:`add_earlier` or :meth:`restore` brings back what was there."""
        for parameter in self._parameters:
            parameter.grad = None

    def add_earlier(self) -> None:
        """Add what is in ``.grad`` to what was there at the beginning."""
        for parameter, earlier in zip(self._parameters, self._earlier, strict=True):
            gradient = parameter.grad
            if earlier is not None:
                parameter.grad = earlier if gradient is None else earlier.add_(gradient)

    def restore(self) -> None:
        """Put back the ``.grad`` that were there at the beginning, the very same tensors; the rows are kept."""
        for parameter, earlier in zip(self._parameters, self._earlier, strict=True):
            parameter.grad = earlier

    def release(self, weights: Tensor) -> None:
        """Leave Σ w_i ∇L_i (times the loss scale) in ``.grad`` and forget the rows.

        The weights (K,) are equal on all ranks. NaN spreads to the gradients, where a GradScaler finds it.
        """
        combined: list[Tensor | None] = [None] * len(self._parameters)
        for weight, row in zip(weights.unbind(), self._rows, strict=True):
            scale_gradients(row, weight)
            for index, gradient in enumerate(row):
                if gradient is not None:
                    so_far = combined[index]
                    combined[index] = gradient if so_far is None else so_far.add_(gradient)
            row.clear()
        self._rows = []
        self._average(combined, self._num_shared, len(combined))
        for parameter, gradient in zip(self._parameters, combined, strict=True):
            parameter.grad = gradient
        self.add_earlier()

    def _average(self, gradients: list[Tensor | None], start: int, stop: int) -> None:
        """Mean over the ranks of gradients[start:stop], in place; a rank without one counts as 0."""
        if world_size() == 1 or start == stop:
            return
        device = self._parameters[start].device
        present = [gradient is not None for gradient in gradients[start:stop]]
        anywhere = all_reduce_max(torch.tensor(present, dtype=torch.float32, device=device)).tolist()
        indices = [start + offset for offset, found in enumerate(anywhere) if found]
        for bucket in _buckets([self._parameters[index] for index in indices]):
            members = [indices[place] for place in bucket]
            flat = all_reduce_mean(self._flatten(gradients, members))
            sizes = [self._parameters[index].numel() for index in members]
            for index, mean in zip(members, flat.split(sizes), strict=True):
                gradient = gradients[index]
                if gradient is None:
                    gradient = torch.empty_like(self._parameters[index], requires_grad=False)
                    gradients[index] = gradient
                gradient.copy_(mean.view_as(gradient))

    def _flatten(self, gradients: Sequence[Tensor | None], indices: Sequence[int]) -> Tensor:
        """Gradients end to end (n,), zeros for None; a single one is a view where its layout allows."""
        found = ((gradients[index], self._parameters[index]) for index in indices)
        parts = [(torch.zeros_like(p) if gradient is None else gradient).reshape(-1) for gradient, p in found]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _weighted_sum(rows: Sequence[tuple[float, Sequence[Tensor | None]]], index: int) -> Tensor | None:
    total: Tensor | None = None
    for weight, row in rows:
        gradient = row[index]
        if gradient is not None:
            total = weight * gradient if total is None else total.add_(gradient, alpha=weight)
    return total


def present(gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Which of the gradients are not 0 everywhere: (P,) bool, on the device of the parameters; None is 0."""
    nothing = torch.zeros((), dtype=torch.bool, device=parameters[0].device)
    return torch.stack([nothing if g is None else g.count_nonzero() > 0 for g in gradients])


def scale_gradients(gradients: Sequence[Tensor | None], weight: Tensor) -> None:
    """Multiply gradients by a scalar on their device, in place."""
    by_type: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        if gradient is not None:
            by_type.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    for (device, dtype), members in by_type.items():
        torch._foreach_mul_(members, weight.to(device=device, dtype=dtype))


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[int]]:
    """Positions of consecutive parameters of one type, up to a bucket's size together or one larger."""
    bucket: list[int] = []
    size = 0
    for place, parameter in enumerate(parameters):
        if bucket:
            first = parameters[bucket[0]]
            alike = first.dtype == parameter.dtype and first.device == parameter.device
            if not alike or size + parameter.numel() > _BUCKET:
                yield bucket
                bucket, size = [], 0
        bucket.append(place)
        size += parameter.numel()
    if bucket:
        yield bucket
