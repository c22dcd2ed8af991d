"""One look per step at every named loss, at what the losses were made of, and at the gradients: for the writers, and
to stop before a bad value reaches the parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

from mokd_det.errors import InvalidLossError, InvalidNumberError
from mokd_det.guard.batch_numbers import bad_positions, describe_images, number_sums
from mokd_det.guard.host_copy import HostCopy

__all__ = ["LossMonitor"]


class _Watched(NamedTuple):
    """What is on its way to the host for a micro-batch.

    Attributes:
        inputs: names of the first columns after the flag: numbers that enter the forward.
        losses: names of the last columns.
        copy: (ranks, 1 + inputs + losses).
        batch: what the model was called with.
    """

    inputs: tuple[str, ...]
    losses: tuple[str, ...]
    copy: HostCopy
    batch: Any


class _Problem(NamedTuple):
    """A value that is not as it must be."""

    what: str
    value: float
    micro_batch: int
    rank: int
    is_loss: bool


class LossMonitor:
    """Collects the losses of one optimiser step, and whether the numbers that enter it are finite.

    Each :meth:`watch` stacks the losses of a forward into one vector, with one number for the images and one for each
    of the teacher's taps, gathers it over the ranks, and starts a single copy to the host; :meth:`watch_gradients`
    starts another; :meth:`check` reads the copies. Every rank sees every rank's values, so all of them stop at the same
    step and with the same message, and none goes on with another's broken gradient. The wish to stop
    (``stop_requested``) travels in the same vector, so that all ranks follow it at the same step.

    Args:
        iteration: index of the optimiser step, for the message.
        allow_negative: accept losses below 0 (balancers that take no logarithm).
        stop_requested: this process was asked to stop.

    Attributes:
        stop_agreed: after :meth:`check`: some rank was asked to stop.
        bad_ranks: after :meth:`check` raised: the ranks whose batch is to blame; all of them for a gradient.
        all_non_finite: after :meth:`check` raised: nothing was merely negative.
    """

    def __init__(self, iteration: int, *, allow_negative: bool = False, stop_requested: bool = False) -> None:
        self._iteration = iteration
        self._allow_negative = allow_negative
        self._stop_requested = stop_requested
        self._watched: dict[int, _Watched] = {}
        self._gradients: tuple[Sequence[str], Sequence[str], HostCopy] | None = None
        self.stop_agreed = False
        self.bad_ranks: tuple[int, ...] = ()
        self.all_non_finite = True

    def watch(self, losses: Mapping[str, Tensor], micro_batch: int, batch: Any) -> None:
        """Start reading the losses of micro-batch ``micro_batch`` and what entered it; a later call for the same one
        replaces it."""
        for name, value in losses.items():
            if not isinstance(value, Tensor) or value.numel() != 1:
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"a training forward must return scalar tensors; loss '{name}' has {found}")
        vector = torch.stack([value.detach().reshape(()).float() for value in losses.values()])
        inputs = number_sums(batch)
        # Filled on the device: a copy from the host could wait for it.
        others = [float(self._stop_requested), *inputs.values()]
        flags = [v if isinstance(v, Tensor) else vector.new_full((), v) for v in others]
        vector = torch.cat([torch.stack(flags), vector])
        world_size = comm.get_world_size()
        if world_size > 1:
            gathered = [torch.empty_like(vector) for _ in range(world_size)]
            dist.all_gather(gathered, vector)
            values = torch.stack(gathered)
        else:
            values = vector[None]
        self._watched[micro_batch] = _Watched(tuple(inputs), tuple(losses), HostCopy(values), batch)

    def watch_gradients(
        self, names: Sequence[str], groups: Sequence[str], gradients: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Start reading which gradients are not finite, on any rank.

        Args:
            names: of the parameters, the same on all ranks.
            groups: the group that each is in.
            gradients: theirs, after their reduction and before clipping.

        Returns:
            The 2-norm of each.
        """
        if not gradients:
            return ()
        norms = torch._foreach_norm(list(gradients))
        bad = 1.0 - torch.stack([norm.float() for norm in norms]).isfinite().float()
        # Reduced gradients are equal everywhere; whether a balancer reduces all of them is not known here.
        if comm.get_world_size() > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        self._gradients = (names, groups, HostCopy(bad))
        return norms

    def check(self) -> dict[str, float]:
        """Wait for the values and judge them.

        Returns:
            Each loss, averaged over ranks and micro-batches.

        Raises:
            InvalidLossError: a loss is NaN, infinite, or negative where that is not allowed; the message
                names the loss, the iteration, and the images of the micro-batch on the rank it appeared on.
            InvalidNumberError: the same for an image, a tap of the teacher, or the gradient of a group of parameters.
        """
        sums: dict[str, float] = {}
        problems: list[_Problem] = []
        for micro_batch, (inputs, names, copy, _) in self._watched.items():
            values = copy.read().double()  # (ranks, columns)
            first = 1 + len(inputs)
            self.stop_agreed |= bool(values[:, 0].any())
            for name, mean in zip(names, values[:, first:].mean(dim=0).tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + mean / len(self._watched)
            for rank, row in enumerate(values.tolist()):
                for name, value in zip(inputs, row[1:first], strict=True):
                    if not math.isfinite(value):
                        problems.append(_Problem(name, value, micro_batch, rank, is_loss=False))
                for name, value in zip(names, row[first:], strict=True):
                    if not math.isfinite(value) or (value < 0 and not self._allow_negative):
                        problems.append(_Problem(name, value, micro_batch, rank, is_loss=True))
        if problems:
            self._raise(problems)
        self._check_gradients()
        return sums

    def _raise(self, problems: list[_Problem]) -> None:
        self.bad_ranks = tuple(sorted({problem.rank for problem in problems}))
        self.all_non_finite = not any(math.isfinite(problem.value) for problem in problems)
        # What enters a forward is the cause of what comes out.
        worst = min(problems, key=lambda problem: problem.is_loss)
        batch = self._watched[worst.micro_batch].batch
        known = not worst.is_loss and comm.get_rank() == worst.rank
        positions = bad_positions(batch, worst.what) if known else None
        images = comm.all_gather(describe_images(batch, positions or None))[worst.rank]
        where = f" on rank {worst.rank}" if comm.get_world_size() > 1 else ""
        if not worst.is_loss:
            raise InvalidNumberError(
                f"{worst.what} holds numbers that are NaN or infinite, at iteration {self._iteration}{where}; images: "
                f"{images}. {_NOTHING_STEPPED}"
            )
        others = sorted({problem.what for problem in problems} - {worst.what})
        also = f" (also {', '.join(others)})" if others else ""
        kind = f"{worst.value:g}, but losses must not be negative" if math.isfinite(worst.value) else None
        raise InvalidLossError(
            f"loss '{worst.what}' is {kind or format(worst.value, 'g')}{also} at iteration {self._iteration}{where}; "
            f"images: {images}. {_NOTHING_STEPPED}"
        )

    def _check_gradients(self) -> None:
        if self._gradients is None:
            return
        names, groups, copy = self._gradients
        bad = torch.nonzero(copy.read()).flatten().tolist()
        if not bad:
            return
        self.bad_ranks = tuple(range(comm.get_world_size()))
        group = groups[bad[0]]
        inside = [position for position in bad if groups[position] == group]
        others = sorted({groups[position] for position in bad} - {group})
        also = f" (also {', '.join(others)})" if others else ""
        own = ", ".join(describe_images(watched.batch) for watched in self._watched.values())
        images = comm.all_gather(own)
        shown = (
            images[0] if len(images) == 1 else "; ".join(f"rank {r}: {text}" for r, text in enumerate(images))
        )
        raise InvalidNumberError(
            f"the gradient of parameter group '{group}'{also} is NaN or infinite in {len(inside)} of its "
            f"{groups.count(group)} tensors, the first is '{names[inside[0]]}', at iteration {self._iteration}, while "
            f"every loss is finite; images: {shown}. {_NOTHING_STEPPED}"
        )


_NOTHING_STEPPED = "Nothing was stepped: parameters and optimiser are those of the iteration before."
