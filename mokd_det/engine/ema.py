"""A moving average of the student's weights beside the training."""

from __future__ import annotations

from detectron2.engine.train_loop import HookBase
from timm.utils import ModelEmaV3
from torch import nn

__all__ = ["EMA_TASK_PREFIX", "StudentEma"]

EMA_TASK_PREFIX = "ema_"
"""Put before a task's name in the results of the averaged weights: "ema_classification/top1"."""


class StudentEma(HookBase):
    """After each iteration: ema ← decay · ema + (1 - decay) · student, for parameters and floating-point buffers.

    timm's implementation. The average starts at the student's initial weights, as DeiT's does, so with a decay d it
    takes some 3/(1 - d) iterations to forget them: 75,000 with 0.99996. For shorter trainings lower the decay or use
    ``warmup``.

    Args:
        student: the bare module that is trained.
        decay: of the average per iteration.
        warmup: let the decay grow to ``decay``, 1 - (1 + iteration)^(-2/3) at most.

    Attributes:
        model: a copy of the student with the averaged weights, in evaluation mode; part of the checkpoint.
    """

    def __init__(self, student: nn.Module, decay: float, warmup: bool = False) -> None:
        self._student = student
        self._warmup = warmup
        self._average = ModelEmaV3(student, decay=decay, use_warmup=warmup)
        self.model: nn.Module = self._average.module.requires_grad_(False)

    def restart(self) -> None:
        """Begin again at the student's present weights."""
        self._average.set(self._student)

    def after_step(self) -> None:
        self._average.update(self._student, step=self.trainer.iter + 1 if self._warmup else None)
