"""Every shipped configuration resolved, as JSON: ``python -m tests.configs.resolved > FILE`` before and after a
change of ``configs/``, and ``diff`` shows what it changed."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

ROOT = Path(__file__).parents[2]
COPIES = ("alone", "mokd", "plain_sum", "published", "student", "teacher")
"""Parts that a file builds on; the sections hold copies of them."""


def shipped_configs() -> list[Path]:
    """All files that can be trained: what defines ``model`` and is not shared by others only."""
    files = sorted((ROOT / "configs").rglob("*.py"))
    return [path for path in files if path.parent.name != "common" and path.name != "common.py"]


def resolved(path: Path) -> dict[str, Any]:
    """The sections of a file as plain values, callables by their dotted names."""
    cfg = LazyConfig.load(str(path))
    return {str(key): _plain(_section(cfg, str(key))) for key in cfg if key not in COPIES}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted keys of nested mappings and their values."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    parts = (flat(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items())
    return {key: inner for part in parts for key, inner in part.items()}


def _section(cfg: DictConfig, key: str) -> Any:
    section = cfg[key]
    try:
        return OmegaConf.to_container(section, resolve=True)
    except OmegaConfBaseException:
        # Own data fills in what such references name.
        return OmegaConf.to_container(section, resolve=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value


if __name__ == "__main__":
    found = {str(path.relative_to(ROOT)): flat(resolved(path)) for path in shipped_configs()}
    json.dump(found, sys.stdout, indent=1, sort_keys=True, default=repr)
