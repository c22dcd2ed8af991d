"""The precision a training's forwards run in, and what float16 needs besides."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

__all__ = ["MixedPrecision"]

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class MixedPrecision:
    """Autocast and, for float16, the scale of the losses.

    Args:
        device: where the forwards run.
        amp: ``dict(enabled=True, dtype="bfloat16" | "float16")``; None: full precision.

    Attributes:
        name: "float32", "bfloat16" or "float16".
        autocast: makes the context of a forward.
        scaler: for float16; None otherwise.

    Raises:
        ConfigError: another dtype.
    """

    def __init__(self, device: torch.device, amp: Mapping[str, Any] | None) -> None:
        self.name = "float32"
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.scaler: torch.amp.GradScaler | None = None
        self._device = device
        self._scale: float | None = None
        if not amp or not amp.get("enabled", True):
            return
        self.name = amp.get("dtype", "bfloat16")
        if self.name not in _DTYPES:
            raise ConfigError(f"train.amp.dtype is '{self.name}'; it must be one of {', '.join(_DTYPES)}")
        self.autocast = functools.partial(torch.autocast, device.type, dtype=_DTYPES[self.name])
        if self.name == "float16":
            self.scaler = torch.amp.GradScaler(device.type)

    def loss_scale(self) -> float | Tensor:
        """What the losses of a backward are multiplied by."""
        if self.scaler is None:
            return 1.0
        return self.scaler.scale(torch.ones((), device=self._device))

    def unscale(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take the scale out of the gradients; returns whether there is one."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        return self.scaler is not None

    def step(self, optimizer: torch.optim.Optimizer, scalars: dict[str, Tensor | float]) -> bool:
        """Step the optimiser, unless a float16 gradient overflowed; adds ``grad_scale`` to the scalars.

        Returns:
            Whether it was stepped.
        """
        if self.scaler is None:
            optimizer.step()
            return True
        # Remembered from the step before: asking a GPU for it is a wait.
        before = self.scaler.get_scale() if self._scale is None else self._scale
        self.scaler.step(optimizer)
        self.scaler.update()
        self._scale = self.scaler.get_scale()
        scalars["grad_scale"] = before
        # The scale falls exactly when the step was skipped because a gradient overflowed.
        return self._scale >= before

    def leave_out(self) -> None:
        """A step was unscaled but will not be taken: the scaler would refuse to unscale a second time; the scale itself
        is not to blame."""
        if self.scaler is not None:
            self.scaler.update(self.scaler.get_scale())

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the scaler's state."""
        if self.scaler is not None:
            self.scaler.load_state_dict(dict(state))
            self._scale = None
