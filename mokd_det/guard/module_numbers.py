"""Plain numbers that modules keep between forwards, outside of their buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from torch import nn

__all__ = ["ModuleNumbers"]


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
