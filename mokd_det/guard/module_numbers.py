"""Plain numbers that modules keep between forwards, outside of their buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    def _put(old: dict[tuple[nn.Module, str], float], new: dict[tuple[nn.Module, str], float]) -> None:
        for module, name in old.keys() - new.keys():
            delattr(module, name)
        for (module, name), value in new.items():
            setattr(module, name, value)


def _numbers(model: nn.Module) -> dict[tuple[nn.Module, str], float]:
    return {
        (module, name): value
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) is float
    }
