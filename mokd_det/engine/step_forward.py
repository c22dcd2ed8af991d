"""The forward of one micro-batch as a function that can be called again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mokd_det.engine.seeded_rng import seeded_rng
from mokd_det.guard.loss_monitor import LossMonitor
from mokd_det.guard.module_state import ModuleNumbers, frozen_buffers

__all__ = ["StepForward"]


class StepForward:
    """Implements :class:`mokd_det.balancing.base.Forward` for one micro-batch.

    Two calls differ only by the parameters: the batch is augmented already, the teacher's outputs are in it, and
    the generators are seeded alike, so that dropout and drop-path masks repeat. A call without gradients is a
    :meth:`replay`.

    Args:
        model: possibly wrapped for data-parallel training; returns a dict of scalar losses.
        objectives: losses → vector (K,).
        batch: what the model is called with.
        micro_batch: position of the micro-batch within the step.
        seed: see :func:`mokd_det.engine.seeded_rng.step_seed`.
        autocast: makes the mixed-precision context of the forward.
        monitor: told the losses of every forward with gradients that is no replay.
        iteration: index of the optimiser step.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Callable[[Mapping[str, Tensor]], Tensor],
        batch: Any,
        *,
        micro_batch: int,
        seed: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        monitor: LossMonitor,
        iteration: int,
    ) -> None:
        self._model = model
        self._module = model.module if isinstance(model, DistributedDataParallel) else model
        self._objectives = objectives
        self._batch = batch
        self._micro_batch = micro_batch
        self._seed = seed
        self._device = device
        self._autocast = autocast
        self._monitor = monitor
        self._iteration = iteration
        self._numbers: ModuleNumbers | None = None

    def __call__(self, *, sync: bool = True) -> Tensor:
        """The objectives (K,), float32; see :class:`mokd_det.balancing.base.Forward`."""
        if not torch.is_grad_enabled():
            return self.replay()
        self._numbers = ModuleNumbers(self._module)
        with ExitStack() as stack:
            if not sync and isinstance(self._model, DistributedDataParallel):
                stack.enter_context(self._model.no_sync())
            losses = self._losses(self._model)
        self._monitor.watch(losses, self._micro_batch, self._batch)
        return self._objectives(losses)

    def replay(self, *, sync: bool = False) -> Tensor:
        """The objectives (K,) once more, with a graph where gradients are on, leaving no trace.

        It goes to the bare module, so the data-parallel wrapper averages nothing in its backward, whatever
        ``sync`` says; buffers and running numbers stay as they were, nothing is logged and nothing monitored.
        """
        numbers = self._numbers or ModuleNumbers(self._module)
        # Models that log from their forward would count the batch twice.
        with frozen_buffers(self._module), numbers.restored(), EventStorage(self._iteration):
            losses = self._losses(self._module)
        return self._objectives(losses)

    def _losses(self, model: nn.Module) -> dict[str, Tensor]:
        with seeded_rng(self._seed, self._device), self._autocast():
            losses = model(self._batch)
        return {"loss": losses} if isinstance(losses, Tensor) else losses
