"""Giving an imported module the functions of a changed source: everyone who imported them has the changed ones."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["swap"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None), tuple, frozenset)


def swap(file: Path, source: str) -> None:
    """Let the module imported from ``file`` behave like ``source``.

    Functions and methods get new code and defaults in place; constants of the module and its classes are replaced. Not
    reached: constants that another module has imported by name, and defaults of dataclass fields.

    Args:
        file: of a module that is imported.
        source: the changed text.
    """
    module = next(m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == str(file))
    # Detectron2 refuses a second class of the same name.
    registered = importlib.import_module("detectron2.modeling").META_ARCH_REGISTRY._obj_map
    for name in [name for name, item in registered.items() if item.__module__ == module.__name__]:
        del registered[name]
    changed: dict[str, Any] = {
        key: module.__dict__[key] for key in ("__name__", "__package__", "__file__", "__spec__", "__loader__")
    }
    exec(compile(source, str(file), "exec"), changed)
    _update(module, module.__dict__, changed, module.__name__)


def _update(owner: Any, old: Any, new: Any, module: str) -> None:
    for name, value in list(new.items()):
        if name.startswith("__") and name.endswith("__") and isinstance(value, _PLAIN):
            continue
        before = old.get(name)
        if isinstance(value, type):
            if value.__module__ == module and isinstance(before, type):
                _update(before, vars(before), vars(value), module)
        elif isinstance(value, _PLAIN):
            if name in old:
                setattr(owner, name, value)
        else:
            for target, function in zip(_functions(before), _functions(value), strict=False):
                _replace(target, function, module)


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """The functions behind an attribute: itself, what it wraps, or those of a property."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            yield from _functions(part)
    elif isinstance(value, functools.cached_property):
        yield from _functions(value.func)
    else:
        while value is not None:
            if isinstance(value, types.FunctionType):
                yield value
            value = getattr(value, "__wrapped__", None)


def _replace(target: types.FunctionType, function: types.FunctionType, module: str) -> None:
    if target.__module__ != module or len(target.__code__.co_freevars) != len(function.__code__.co_freevars):
        return
    target.__code__ = function.__code__
    target.__defaults__ = function.__defaults__
    target.__kwdefaults__ = function.__kwdefaults__
