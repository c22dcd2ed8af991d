"""What a forward changes in a model besides its result, buffers and plain numbers of modules, and taking it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import nn

__all__ = ["ModuleNumbers", "StepState", "frozen_buffers"]


@contextmanager
def frozen_buffers(model: nn.Module) -> Iterator[None]:
    """Let the forwards inside work on copies of the buffers: BatchNorm statistics, counters, any module's own.

    The modules stay in training mode, so a BatchNorm normalises by the batch as in the forward that is
    repeated. The buffers themselves are not written at all (restoring them afterwards would invalidate graphs
    that saved them, and BatchNorm's kernels change them without counting a new version).
    """
    originals = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    for module, name, buffer in originals:
        module._buffers[name] = buffer.detach().clone()
    try:
        yield
    finally:
        for module, name, buffer in originals:
            module._buffers[name] = buffer


class ModuleNumbers:
    """What a model's modules hold as float attributes at the time of construction.

    Detectron2's RetinaNet divides its losses by a running mean of the number of foreground anchors, a float that
    every training forward changes before using it. The losses of a step taken again with the number it left behind
    would differ for that reason alone, by far more than a step changes them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._values = _numbers(model)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Let the forwards inside start from these numbers; afterwards the modules have their own again."""
        present = _numbers(self._model)
        self._put(present, self._values)
        try:
            yield
        finally:
            self._put(_numbers(self._model), present)

    def put_back(self) -> None:
        """Give the modules these numbers again, for good."""
        self._put(_numbers(self._model), self._values)

    @staticmethod
    def _put(old: _Numbers, new: _Numbers) -> None:
        for module in old.keys() | new.keys():
            values = new.get(module, {})
            for name in old.get(module, {}).keys() - values.keys():
                delattr(module, name)
            for name, value in values.items():
                setattr(module, name, value)


_Numbers: TypeAlias = "dict[nn.Module, dict[str, float]]"


def _numbers(model: nn.Module) -> _Numbers:
    # Of every forward: a walk of its own takes half the time of ``modules()``, and the garbage collector leaves dicts
    # of floats alone.
    found: _Numbers = {}
    waiting: list[nn.Module | None] = [model]
    seen: set[nn.Module] = set()
    while waiting:
        module = waiting.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        waiting.extend(module._modules.values())
        own = {name: value for name, value in vars(module).items() if type(value) is float}
        if own:
            found[module] = own
    return found


class StepState:
    """What a forward changes besides its result, so that a step can be taken back: buffers, whose memory it costs once
    more, and the numbers that modules keep."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        self._numbers = ModuleNumbers(model)

    @torch.no_grad()
    def put_back(self) -> None:
        """Write all of it back; only when no graph needs what is in the buffers now."""
        for buffer, value in self._buffers:
            buffer.copy_(value)
        self._numbers.put_back()
