"""The contract of a balancer: what one optimiser step needs from it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mokd_det.errors import ConfigError

__all__ = ["Balancer", "Forward", "StepContext"]

_logger = logging.getLogger(__name__)


class Forward(Protocol):
    """Evaluates the K objectives of one micro-batch at the current parameters.

    Calling it again gives the same augmentation, the same teacher outputs and the same random masks (dropout,
    drop path), so two calls differ only by what the optimiser changed. It may be called under
    ``torch.no_grad()``; then buffers such as BatchNorm statistics are left untouched.
    """

    def __call__(self, *, sync: bool = True) -> Tensor:
        """Objectives as a float32 (or float64) vector (K,), with their graph unless gradients are off.

        Args:
            sync: let the data-parallel wrapper average the gradients of this forward's ``backward()``. False
                for every micro-batch but the last one, and for balancers that reduce gradients themselves.
        """
        ...


@dataclass
class StepContext:
    """What a balancer may know of the model and the step.

    Attributes:
        shared_parameters: trainable parameters of the student; the Gram matrix is taken over these.
        private_parameters: other trainable parameters (projections of the distillation method); they receive
            gradients but never enter the Gram matrix.
        loss_scale: factor on the gradients left in ``.grad`` (the GradScaler's; 1 without one). It multiplies
            the final scalar, never the argument of a logarithm.
        iteration: index of the optimiser step, from 0.
        taps: returns the student's tap tensors of the latest forward, with their graph, for balancers that work on
            features. A function, because the balancer runs the forward: before it there is nothing to hand over.
    """

    shared_parameters: Sequence[nn.Parameter]
    private_parameters: Sequence[nn.Parameter] = ()
    loss_scale: float | Tensor = 1.0
    iteration: int = 0
    taps: Callable[[], Sequence[Tensor]] = tuple


class Balancer(ABC):
    """Turns K objectives into one gradient.

    Life of a step, as :class:`mokd_det.engine.MoKDTrainer` runs it: ``backward(forwards, context)`` leaves the combined
    gradient (times ``loss_scale``) in every parameter's ``.grad``, averaged over ranks and micro-batches; the trainer
    clips and steps; ``after_step(forwards, context)`` follows only if the optimiser really stepped.

    Like ``Tensor.backward``, :meth:`backward` adds to what is in ``.grad``: the trainer clears it before. Own state
    changes in :meth:`after_step` alone, and only by finite values, so a step that was skipped or failed leaves no mark.

    State (weights, their optimiser, counters) goes through ``state_dict``/``load_state_dict`` as plain
    tensors and numbers; loading it (after :meth:`setup`) makes the continuation bit-equal.

    Attributes:
        requires_positive: whether every objective must be at least 0 (its logarithm or its scale is taken;
            exactly 0 is legal). The trainer raises :class:`mokd_det.errors.InvalidLossError` for a negative
            one; the balancer itself never reads a value on the host.
        update_every: the weights are brought up to date in one of this many steps.
        objectives: names of the K objectives, in order.
    """

    requires_positive: bool = False

    def __init__(self, update_every: int = 1) -> None:
        if not isinstance(update_every, int) or update_every < 1:
            raise ConfigError(
                f"balancer.update_every must be a whole number of at least 1, not {update_every!r}"
            )
        self.update_every = update_every
        self.objectives: tuple[str, ...] = ()

    def setup(self, objectives: Sequence[str], device: Any = "cpu") -> None:
        """Learn the names of the objectives (their number is K); called once before training."""
        self.objectives = tuple(objectives)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027 (most work with any)
        """Refuse an optimiser that this balancer cannot work with.

        Raises:
            ConfigError: naming what would be right.
        """

    @abstractmethod
    def backward(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        """Run the forwards and leave the balanced gradient in ``.grad``.

        Returns:
            What the writers log: detached scalars (tensors are not synchronised here), e.g. ``pi/distill``.
        """

    def after_step(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        """Update the balancer's own state after an optimiser step that was taken; returns scalars to log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain containers, numbers and tensors."""
        state = self._state()
        return {"objectives": list(self.objectives), **state} if state else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it; with the state of other objectives the weights start anew, and a warning says so."""
        if type(self)._state is Balancer._state:
            if state:
                raise ValueError(f"{type(self).__name__} has no state, got {sorted(state)}")
        elif tuple(state["objectives"]) == self.objectives:
            self._load_state(state)
        else:
            _logger.warning(
                "the checkpoint's balancer weights belong to the objectives %s, not %s: they start anew",
                list(state["objectives"]),
                list(self.objectives),
            )

    def _state(self) -> dict[str, Any]:
        """The state beside the names of the objectives; {}: there is none."""
        return {}

    def _load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most have none)
        """Take over what :meth:`_state` gave."""

    def _named(self, kind: str, values: Tensor) -> dict[str, Tensor | float]:
        """Scalars ``<kind>/<objective>`` to log, of values (K,)."""
        return {f"{kind}/{name}": value for name, value in zip(self.objectives, values.unbind(), strict=True)}

    def _require_one_of_several(self, objective: str) -> None:
        """Refuse a ``balancer.objective`` that is none, or that is the only one."""
        if objective not in self.objectives or len(self.objectives) < 2:
            raise ConfigError(
                f"balancer.objective='{objective}' must be one of two or more objectives; "
                f"they are {list(self.objectives)}"
            )
