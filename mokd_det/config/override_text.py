"""Writing ``key.path=value`` overrides, in the syntax that :mod:`mokd_det.config.overrides` reads."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from mokd_det.errors import ConfigError

__all__ = ["as_override"]

_PLAIN = re.compile(r"(?!(?i:null|true|false|nan|inf)$)(\.{0,2}/)?[A-Za-z_][\w./-]*")
"""Texts that need no quotes."""


def as_override(key: str, value: Any) -> str:
    """The text that gives the dotted ``key`` this value: None, a switch, number or string of any characters, a class or
    function (by its name), or lists and mappings of these.

    Raises:
        ConfigError: another kind of value.
    """
    return f"{key}={_as_text(value, top=True)}"


def _as_text(value: Any, top: bool = False) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        # What is called stands first.
        items = sorted(value.items(), key=lambda item: item[0] != "_target_")
        return "{" + ", ".join(f"{_escape(key)}: {_as_text(inner)}" for key, inner in items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_as_text, value)) + "]"
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} cannot be written on a command line")
    if top and _PLAIN.fullmatch(value):
        return value
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"


def _escape(key: str) -> str:
    """A mapping's key; it takes no quotes, but a backslash before what has a meaning."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key)
