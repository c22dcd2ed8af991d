"""What the callable of a ``LazyCall`` node accepts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf

from mokd_det.config.near_keys import did_you_mean
from mokd_det.errors import ConfigError

__all__ = ["accepted_arguments", "check_call_arguments"]


def accepted_arguments(node: DictConfig, path: str) -> Mapping[str, inspect.Parameter] | None:
    """The keyword arguments that the ``_target_`` of the node at ``path`` accepts; None if it accepts any.

    Raises:
        ConfigError: ``_target_`` names nothing that can be called.
    """
    target = _resolve_target(node["_target_"], path)
    if target is None:
        return None
    try:
        signature = inspect.signature(target)
    except (ValueError, TypeError):
        return None
    parameters = signature.parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in by_name}


def _resolve_target(target: Any, path: str) -> Callable[..., Any] | None:
    if isinstance(target, Mapping):
        # A callable that is itself built by a call: what it accepts shows only then.
        return None
    if isinstance(target, str):
        try:
            located = locate(target)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"{path}._target_ is '{target}', which cannot be imported: {error}") from error
        if located is None:
            raise ConfigError(f"{path}._target_ is '{target}', which cannot be imported")
        target = located
    if not callable(target):
        raise ConfigError(f"{path}._target_ is {target!r}, which cannot be called")
    return target


def check_call_arguments(cfg: DictConfig | ListConfig, path: str = "") -> None:
    """Check every ``LazyCall`` node of a config for arguments that its callable does not have.

    Raises:
        ConfigError: naming the full key and the nearest argument.
    """
    if isinstance(cfg, DictConfig):
        if "_target_" in cfg:
            accepted = accepted_arguments(cfg, path)
            unknown = [
                key for key in cfg if key != "_target_" and accepted is not None and key not in accepted
            ]
            if unknown:
                target = cfg["_target_"]
                name = target if isinstance(target, str) else getattr(target, "__name__", repr(target))
                hint = did_you_mean(f"{path}.{unknown[0]}", [f"{path}.{key}" for key in accepted or ()])
                raise ConfigError(
                    f"unknown config key '{path}.{unknown[0]}': {name} has no such argument; {hint}"
                )
        keys: list[Any] = list(cfg)
    else:
        keys = list(range(len(cfg)))
    for key in keys:
        if OmegaConf.is_interpolation(cfg, key) or OmegaConf.is_missing(cfg, key):
            continue
        child = cfg[key]
        if isinstance(child, (DictConfig, ListConfig)):
            check_call_arguments(child, f"{path}.{key}" if path else str(key))
