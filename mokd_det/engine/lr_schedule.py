"""Learning-rate schedules that Detectron2 and fvcore lack."""

from __future__ import annotations

import math

from fvcore.common.param_scheduler import ParamScheduler

from mokd_det.errors import ConfigError

__all__ = ["EpochCosineParamScheduler"]


class EpochCosineParamScheduler(ParamScheduler):
    """Cosine decay that changes once per epoch and lags one epoch behind: ViDT's ``warmupcos`` without warm-up.

    With E epochs, epoch e (from 0) has the multiplier ``end + (start - end)·(1 + cos(π·t/E))/2`` where
    ``t = max(e - 1, 0)``: the official scheduler takes its step for epoch e at the *end* of epoch e, so the first two
    epochs share the base rate and the last one does not reach ``end``.

    Args:
        num_epochs: E; the training's iterations are divided into E equal epochs.
        end_value: multiplier the cosine tends to, e.g. 1e-3 for 1e-4 → 1e-7.
        start_value: multiplier of the first epoch.
    """

    def __init__(self, num_epochs: int, end_value: float, start_value: float = 1.0) -> None:
        if num_epochs < 1:
            raise ConfigError(f"lr_multiplier.num_epochs is {num_epochs}; it must be 1 or more")
        self.num_epochs = num_epochs
        self.end_value = end_value
        self.start_value = start_value

    def __call__(self, where: float) -> float:
        """Multiplier at the share ``where`` in [0, 1] of the training."""
        # k / n · E may round to just below a whole number; iterations lie 1e-7 epochs or more apart.
        epoch = min(math.floor(where * self.num_epochs + 1e-9), self.num_epochs - 1)
        angle = math.pi * max(epoch - 1, 0) / self.num_epochs
        return self.end_value + (self.start_value - self.end_value) * (1.0 + math.cos(angle)) / 2.0
