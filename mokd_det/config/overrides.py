"""Command-line overrides that can only change what exists.

Detectron2's ``LazyConfig.apply_overrides`` accepts any key, so a misspelt one trains the wrong thing in silence.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mokd_det.config.call_arguments import accepted_arguments
from mokd_det.config.near_keys import did_you_mean
from mokd_det.config.train_settings import ddp_arguments, train_section_defaults
from mokd_det.errors import ConfigError, first_line

__all__ = ["apply_overrides"]

_ABSENT = object()
_FREE_MAPPINGS = ("objectives", "train.conflict_groups", "trackers")
"""Mappings whose keys are the user's: names are added and taken out (by null) at will."""

_NULLABLE = (
    "dataloader.test",
    "dataloader.evaluator",
    "train.best",
    "train.checkpointer.max_to_keep",
    "train.clip_grad",
    "train.ema",
)
"""What null switches off, outside of calls."""


class _Literal(str):
    """A value that is not in Hydra's syntax, which a key that holds text takes as it stands: most paths are such.

    Attributes:
        problem: the error for any other key.
        several: it looks like a list of values to be tried one after the other.
    """

    problem: str
    several: bool


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Apply ``key.path=value`` overrides in place.

    Values have the syntax of Hydra's overrides (``train.seed=1``, ``objectives.box=[loss_box*]``,
    ``train.clip_grad={max_norm: 0.1}``, ``train.clip_grad=null``). What is not in that syntax is text as it stands for
    keys that hold text, ``~`` being the home folder: ``data.train.json=~/Küche (2)/train.json``.

    A key must exist, or be an argument that the callable of its ``LazyCall`` node accepts. A scalar keeps its type: an
    integer is fine for a float, ``1e4`` for an integer; null is refused for a number, string or switch outside of
    calls. A mapping given to a call or to a section is merged key by key under the same rules; a call given with a
    ``_target_`` of its own, or a mapping that is itself an argument, is replaced.

    Returns:
        ``cfg``.

    Raises:
        ConfigError: the syntax is wrong, the key does not exist (with the nearest one), or the type differs.
    """
    parser = OverridesParser.create()
    for text in overrides:
        key, value = _parse(parser, text)
        try:
            _assign(cfg, key, value, text)
        except OmegaConfBaseException as error:
            raise ConfigError(f"override '{text}' cannot be applied: {first_line(error)}") from error
    return cfg


def _parse(parser: OverridesParser, text: str) -> tuple[str, Any]:
    """Key and value."""
    several = False
    try:
        parsed = parser.parse_override(text)
        several = parsed.is_sweep_override()
        if not (several or parsed.is_delete() or parsed.is_add() or parsed.is_force_add()):
            return parsed.key_or_group, parsed.value()
        problem = f"override '{text}': only key.path=value is supported (no +, ~, or several values)"
    except HydraException as error:
        problem = f"override '{text}' is not of the form key.path=value: {first_line(error)}"
    key, equals, value = text.partition("=")
    # An unclosed quote or bracket is a slip, not a path.
    if not equals or not re.fullmatch(r"[\w.]+", key) or value.startswith(("'", '"', "[", "{")):
        raise ConfigError(problem)
    literal = _Literal(os.path.expanduser(value))
    literal.problem, literal.several = problem, several
    return key, literal


def _assign(cfg: DictConfig, key: str, value: Any, text: str) -> None:
    parts = key.split(".")
    container: DictConfig | ListConfig = cfg
    inside_call = False
    for depth, part in enumerate(parts[:-1]):
        path = ".".join(parts[: depth + 1])
        inside_call = inside_call or (isinstance(container, DictConfig) and "_target_" in container)
        child = _child(cfg, container, part, path)
        if child is None and depth == 1 and parts[0] == "train" and train_section_defaults(part):
            container[part] = train_section_defaults(part)
            child = container[part]
        if child is None or not isinstance(child, (DictConfig, ListConfig)):
            raise ConfigError(f"override '{text}': {path} is {_shown(child)} and has no keys")
        container = child
    _set(cfg, container, parts[-1], key, value, text, inside_call)


def _set(
    cfg: DictConfig,
    container: DictConfig | ListConfig,
    name: str,
    path: str,
    value: Any,
    text: str,
    inside_call: bool,
) -> None:
    inside_call = inside_call or (isinstance(container, DictConfig) and "_target_" in container)
    is_free = path.rsplit(".", 1)[0] in _FREE_MAPPINGS
    old = _ABSENT if is_free and name not in container else _child(cfg, container, name, path, default=True)
    if isinstance(old, DictConfig) and isinstance(value, Mapping):
        if "_target_" in value and "_target_" in old:
            # Another callable: the arguments of the old one mean nothing to it.
            container[name] = value
            accepted_arguments(container[name], path)
            return
        if path in _FREE_MAPPINGS or (inside_call and "_target_" not in old):
            container[name] = value
            return
        for key, inner in value.items():
            _set(cfg, old, str(key), f"{path}.{key}", inner, text, inside_call)
        return
    if old is None and isinstance(value, Mapping) and path.startswith("train."):
        # Switching a section on: unknown keys of it are rejected when the section is read.
        value = {**train_section_defaults(name), **value}
    index = int(name) if isinstance(container, ListConfig) else name
    if name == "_target_":
        if not isinstance(value, str):
            raise ConfigError(f"override '{text}': {path} must be the dotted name of a callable")
        container[name] = value
        accepted_arguments(container, path.rsplit(".", 1)[0])
        return
    container[index] = _fitting(old, value, path, text, inside_call)


def _child(
    cfg: DictConfig, container: DictConfig | ListConfig, name: str, path: str, default: bool = False
) -> Any:
    """The value at ``name``; with ``default`` also that of an argument the call has but the config does not set."""
    if isinstance(container, ListConfig):
        if not name.isdigit() or int(name) >= len(container):
            raise ConfigError(
                f"unknown config key '{path}': the list has the entries 0 to {len(container) - 1}"
            )
        return container[int(name)]
    if name in container:
        return container[name]
    parent = path.rsplit(".", 1)[0] + "." if "." in path else ""
    if default and parent == "train.ddp." and name in ddp_arguments():
        return _ABSENT
    known = {str(key) for key in container if key != "_target_"}
    if "_target_" in container:
        accepted = accepted_arguments(container, parent.rstrip("."))
        if default and (accepted is None or name in accepted):
            parameter = accepted[name] if accepted is not None else None
            if parameter is None or parameter.default is inspect.Parameter.empty:
                return _ABSENT
            return parameter.default
        known |= set(accepted or ())
    hint = did_you_mean(path, [parent + key for key in known], _all_keys(cfg))
    raise ConfigError(f"unknown config key '{path}'; {hint}")


def _fitting(old: Any, value: Any, path: str, text: str, inside_call: bool) -> Any:
    """``value`` in the type of ``old``."""
    if isinstance(value, _Literal):
        if isinstance(old, str) or ((old is _ABSENT or old is None) and not value.several):
            return str(value)
        raise ConfigError(value.problem)
    if old is _ABSENT or old is None or (isinstance(value, str) and value.startswith("${")):
        return value
    if value is None:
        # Arguments of calls may well be optional; sections of the configuration say so by being null already.
        if inside_call or path.split(".")[0] in _FREE_MAPPINGS or path in _NULLABLE:
            return None
        raise ConfigError(f"override '{text}': {path} is {_shown(old)} and cannot be null")
    if isinstance(old, bool):
        fits = isinstance(value, bool)
    elif isinstance(old, int):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(old, float):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    elif isinstance(old, str):
        fits = isinstance(value, str)
    elif isinstance(old, (ListConfig, list, tuple)):
        fits = isinstance(value, (list, tuple)) or path.split(".")[0] in _FREE_MAPPINGS
    elif isinstance(old, (DictConfig, dict)):
        fits = False
    else:
        return value
    if not fits:
        quote = f"; to give a string write {path}='\"{value}\"'" if isinstance(old, str) else ""
        raise ConfigError(
            f"override '{text}': {path} is {_shown(old)}, not of type {type(value).__name__}{quote}"
        )
    return value


def _all_keys(cfg: DictConfig | ListConfig, path: str = "") -> list[str]:
    keys: list[str] = []
    for key in cfg if isinstance(cfg, DictConfig) else range(len(cfg)):
        if key == "_target_":
            continue
        full = f"{path}.{key}" if path else str(key)
        keys.append(full)
        if not OmegaConf.is_interpolation(cfg, key) and not OmegaConf.is_missing(cfg, key):
            child = cfg[key]
            if isinstance(child, (DictConfig, ListConfig)):
                keys += _all_keys(child, full)
    return keys


def _shown(value: Any) -> str:
    if isinstance(value, (DictConfig, dict)):
        return "a mapping"
    if isinstance(value, (ListConfig, list, tuple)):
        return "a list"
    return f"{value!r} ({type(value).__name__})" if value is not None else "null"
