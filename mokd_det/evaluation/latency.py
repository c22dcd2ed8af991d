"""How long a forward pass takes."""

from __future__ import annotations

import contextlib
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mokd_det.errors import ConfigError, first_line

__all__ = ["PRECISIONS", "Latency", "autocast_to", "measure_latency"]

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of number formats and what autocast is given."""


@dataclass(frozen=True)
class Latency:
    """Wall-clock seconds of each measured forward pass, of ``batch_size`` images."""

    seconds: tuple[float, ...]
    batch_size: int

    @property
    def median(self) -> float:
        """Seconds of a pass."""
        return float(np.median(self.seconds))

    @property
    def fps(self) -> float:
        """Images per second, by the median pass."""
        return self.batch_size / self.median

    def quantile(self, share: float) -> float:
        """Seconds that this share of the passes did not exceed."""
        return float(np.quantile(self.seconds, share))


def autocast_to(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass in one of :data:`PRECISIONS`; weights stay as they are.

    Raises:
        ConfigError: another name.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; it must be {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def measure_latency(
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    warmup: int = 5,
    repeats: int = 20,
) -> Latency:
    """Time ``model(*inputs)`` without gradients, from the input as given to the output, the GPU's work included.

    Args:
        model: in eval mode, on ``device``.
        batch_size: images in ``inputs``.
        precision: of :data:`PRECISIONS`.
        warmup: passes before the first that counts.
        repeats: passes that count.

    Raises:
        ConfigError: no repeats, an unknown precision, or one that an operator of the model lacks on this device.
    """
    if repeats < 1 or warmup < 0:
        raise ConfigError(f"{warmup} passes of warm-up and {repeats} measured ones; measure 1 or more")
    seconds = []
    with torch.inference_mode(), autocast_to(precision, device):
        for index in range(warmup + repeats):
            _wait_for(device)
            start = time.perf_counter()
            try:
                model(*inputs)
            except (RuntimeError, NotImplementedError) as error:
                if precision == "fp32" or "not implemented for" not in str(error):
                    raise
                raise ConfigError(
                    f"{type(model).__name__} cannot run in {precision} on this {device.type}: "
                    f"{first_line(error)}"
                ) from error
            _wait_for(device)
            if index >= warmup:
                seconds.append(time.perf_counter() - start)
    return Latency(tuple(seconds), batch_size)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
