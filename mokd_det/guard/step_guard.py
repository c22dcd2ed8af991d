"""The guard of a training's steps: no number that is NaN or infinite reaches the parameters."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.utils import comm
from torch import Tensor, nn

from mokd_det.command_hint import command
from mokd_det.contract import as_task
from mokd_det.contract.parameter_parts import REST, split_by_part
from mokd_det.errors import InvalidLossError, InvalidNumberError, first_line
from mokd_det.guard.batch_numbers import bad_positions, describe_images, number_sums
from mokd_det.guard.loss_monitor import LossMonitor
from mokd_det.guard.module_state import StepState
from mokd_det.guard.policy import NonFinitePolicy, keep_batch, kept_file

__all__ = ["StepGuard"]

logger = logging.getLogger(__name__)


class StepGuard:
    """Stops a training, or leaves a step out, at NaN and infinity in a loss, a gradient, an image or a teacher's tap.

    A step is: :meth:`begin`; whatever runs a forward :meth:`explaining` its batches, with ``monitor`` told the losses;
    :meth:`watch_gradients`; :meth:`check`. An :class:`~mokd_det.errors.InvalidNumberError` from any of these goes to
    :meth:`refuse`.

    Args:
        module: the bare module that is trained.
        policy: what happens at NaN and infinity; None: the training stops, and no batch is kept.
        seed: of the training, kept with a batch for its replay.
        allow_negative: accept losses below 0 (balancers that take no logarithm).

    Attributes:
        monitor: of the present step.
        skipped_steps: how many were left out in the whole run; to be stored and put back by the owner.
    """

    def __init__(
        self,
        module: nn.Module,
        policy: NonFinitePolicy | None = None,
        *,
        seed: int,
        allow_negative: bool,
    ) -> None:
        self.policy = NonFinitePolicy() if policy is None else policy
        self.skipped_steps = 0
        self._task, self._module = as_task(module), module
        self._seed, self._allow_negative = seed, allow_negative
        self._kept_batches = 0
        self._parameter_names: dict[int, tuple[str, str]] = {}
        self.begin(0, ())

    def begin(self, iteration: int, loaded: Sequence[Any], *, stop_requested: bool = False) -> None:
        """A new step.

        Args:
            iteration: its index.
            loaded: the loader's micro-batches.
            stop_requested: this process was asked to stop; all ranks learn of it with the losses.
        """
        self._iteration, self._loaded = iteration, loaded
        self.monitor = LossMonitor(
            iteration, allow_negative=self._allow_negative, stop_requested=stop_requested
        )
        self._state = StepState(self._module) if self.policy.policy == "skip" else None

    @property
    def stop_agreed(self) -> bool:
        """After :meth:`check`: some rank was asked to stop."""
        return self.monitor.stop_agreed

    @contextmanager
    def explaining(self, batches: Sequence[Any]) -> Iterator[None]:
        """Raise what really went wrong, if a forward inside fails over numbers of these batches."""
        try:
            yield
        except Exception as error:
            self._explain(error, batches)
            raise

    def _explain(self, error: Exception, batches: Sequence[Any]) -> None:
        for batch in batches:
            for name, value in number_sums(batch).items():
                if not math.isfinite(value):
                    where = describe_images(batch, bad_positions(batch, name) or None)
                    raise InvalidNumberError(
                        f"{name} holds numbers that are NaN or infinite, at iteration {self._iteration}; images: "
                        f"{where}. The forward failed ({first_line(error)}); nothing was stepped."
                    ) from error
        if isinstance(error, FloatingPointError) and not isinstance(error, InvalidNumberError):
            images = ", ".join(describe_images(batch) for batch in batches)
            raise InvalidLossError(
                f"the forward failed at iteration {self._iteration} ({first_line(error)}); images: {images}. "
                "Nothing was stepped."
            ) from error

    def watch_gradients(self, parameters: Iterable[nn.Parameter]) -> Sequence[Tensor] | None:
        """Start looking at the gradients, if the policy wants it; the reduced ones, before clipping.

        Returns:
            The 2-norm of each gradient that is there; None: nobody looks.
        """
        if not self.policy.check_gradients:
            return None
        if not self._parameter_names:
            self._parameter_names = self._name_parameters()
        reached = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        named = [self._parameter_names.get(id(parameter), ("a parameter", REST)) for parameter, _ in reached]
        return self.monitor.watch_gradients(
            [name for name, _ in named], [part for _, part in named], [gradient for _, gradient in reached]
        )

    def _name_parameters(self) -> dict[int, tuple[str, str]]:
        """Name and part of every parameter, by identity."""
        student = self._task.eval_model
        parameters = list(student.parameters())
        of_student = {
            id(parameters[position]): part
            for part, positions in split_by_part(student, parameters).items()
            for position in positions
        }
        return {
            id(parameter): (name, of_student.get(id(parameter), name.partition(".")[0]))
            for name, parameter in self._module.named_parameters()
        }

    def check(self) -> dict[str, float]:
        """The losses, averaged over ranks and micro-batches; see :meth:`LossMonitor.check` for what it raises."""
        return self.monitor.check()

    def refuse(self, error: InvalidNumberError) -> None:
        """Take the step back, keep its batch, and leave it out; or end the training.

        Raises:
            InvalidNumberError: of the error's kind, with where the batch is; the step is not to be left out.
        """
        bad_ranks = self.monitor.bad_ranks
        # A forward that failed on its own rank cannot be agreed upon: its partners wait within theirs.
        agreed = bool(bad_ranks) or comm.get_world_size() == 1
        skip = self._state is not None and self.monitor.all_non_finite and agreed
        if self._state is not None:
            self._state.put_back()
        message = f"{str(error).removesuffix('.')}.{self._keep(error, bad_ranks)}"
        exhausted = self.skipped_steps >= self.policy.max_skips
        if skip and exhausted:
            message += f" {self.skipped_steps} steps were left out before (train.non_finite.max_skips)."
        if not skip or exhausted:
            raise type(error)(message) from error
        self.skipped_steps += 1
        logger.warning("Step left out (%d of %d): %s", self.skipped_steps, self.policy.max_skips, message)

    def _keep(self, error: InvalidNumberError, bad_ranks: Sequence[int]) -> str:
        """Keep the batches of these ranks (none: this one's alone); returns a sentence about it."""
        directory = self.policy.directory
        if not directory or self._kept_batches >= self.policy.max_kept:
            return ""
        self._kept_batches += 1
        rank = comm.get_rank()
        reason = ""
        if rank in (bad_ranks or (rank,)):
            facts = {"iteration": self._iteration, "rank": rank, "seed": self._seed}
            file = kept_file(directory, self._iteration, rank)
            reason = keep_batch(file, self._task, self._loaded, str(error), facts)
        # Only a failure that all ranks know of may be talked about.
        reasons = [text for text in (comm.all_gather(reason) if bad_ranks else [reason]) if text]
        if reasons:
            return f" The batch could not be kept ({reasons[0]})."
        file = kept_file(directory, self._iteration, bad_ranks[0] if bad_ranks else rank)
        return f" To look into it: {command('tools/replay_batch.py')} {file}"
