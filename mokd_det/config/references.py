"""References between the sections of a configuration, ``${section.key}``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from mokd_det.config.near_keys import did_you_mean
from mokd_det.errors import ConfigError, first_line

__all__ = ["check_references"]

_MISSING = re.compile(r"Interpolation key '([^']+)' not found")


def check_references(cfg: DictConfig, sections: Iterable[str]) -> None:
    """Resolve everything that the sections refer to.

    A section may choose among entries of another one, ``${methods.${choice.method}}``, so that a choice that does
    not exist shows only here.

    Raises:
        ConfigError: a reference to a key that does not exist, with the nearest one, or one that refers to itself.
    """
    for section in sections:
        try:
            value = cfg[section]
            if OmegaConf.is_config(value):
                OmegaConf.to_container(value, resolve=True)
        except InterpolationKeyError as error:
            found = _MISSING.search(str(error))
            key = found[1] if found else first_line(error)
            raise ConfigError(f"{error.full_key or section} refers to '{key}', {_hint(cfg, key)}") from error
        except OmegaConfBaseException as error:
            raise ConfigError(f"{error.full_key or section}: {first_line(error)}") from error


def _hint(cfg: DictConfig, key: str) -> str:
    """Where the way to the key ends, and what is there instead."""
    parts = key.lstrip(".").split(".")
    for depth in range(len(parts) - 1, -1, -1):
        parent = OmegaConf.select(cfg, ".".join(parts[:depth])) if depth else cfg
        if isinstance(parent, DictConfig):
            place = f"{'.'.join(parts[:depth])} has" if depth else "there is"
            return f"but {place} no '{parts[depth]}'; {did_you_mean(parts[depth], [str(name) for name in parent])}"
    return "which does not exist"
