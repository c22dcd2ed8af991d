"""What this project brings with it, found with or without a checkout: the configs, in Detectron2's convention, the
records of the runs that its results are from, and the demo's teacher and first weights."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mokd_det.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["CONFIGS", "RECORDS", "WEIGHTS", "find_config_file", "get_config", "get_config_file"]


def _folder(installed: str, checkout: str) -> Path:
    packed = Path(__file__).with_name(installed)
    return packed if packed.is_dir() else Path(__file__).resolve().parents[2] / checkout


CONFIGS = _folder("configs", "configs")
"""Folder of the configs: of the installed package, or of the checkout."""
RECORDS = _folder("records", "docs/results/records")
"""Folder of the records that docs/results.md is made from, likewise."""
WEIGHTS = Path(__file__).with_name("weights")
"""Folder of the demo's weights, in float16; ``make demo-teacher`` trains them anew."""


def find_config_file(path: str | os.PathLike[str], what: str = "config file") -> str:
    """The file that a command line names: the user's own, or else the config of this project of that name.

    Args:
        path: a file; or a name below ``configs``, e.g. "COCO/mokd_vidt_nano.py" or "configs/COCO/mokd_vidt_nano.py".
        what: what it is, for messages.

    Raises:
        ConfigError: neither is there (with the nearest name), or the file is neither Python nor YAML.
    """
    name = os.fspath(path)
    if not name:
        raise ConfigError(f"no {what}: give --{what.replace(' ', '-')} FILE")
    if not os.path.isfile(name):
        known = _names()
        if name.removeprefix("configs/") in known:
            return str(CONFIGS / name.removeprefix("configs/"))
        raise ConfigError(f"{what} '{name}' does not exist{_nearest(name, known)}")
    if not name.endswith((".py", ".yaml", ".yml")):
        raise ConfigError(f"{what} '{name}' must be a .py or .yaml file")
    return name


def get_config_file(config_path: str) -> str:
    """The file of a config of this project.

    Args:
        config_path: below ``configs``, e.g. "COCO/mokd_vidt_nano.py".

    Raises:
        ConfigError: there is no such config.
    """
    file = CONFIGS / config_path
    if not file.is_file():
        raise ConfigError(f"there is no config '{config_path}' in {CONFIGS}{_nearest(config_path, _names())}")
    return str(file)


def get_config(config_path: str) -> DictConfig:
    """What a config of this project defines, for a config of your own to build on.

    :func:`mokd_det.config.load_config` of its file also fills in defaults and own data, and checks.

    Args:
        config_path: below ``configs``, e.g. "COCO/mokd_vidt_nano.py" or "common/vidt.py".

    Raises:
        ConfigError: there is no such config.
    """
    # Tools that only look for a file need not wait for what reads it.
    from mokd_det.config.config_file import run_program

    found: DictConfig = run_program(get_config_file(config_path))
    return found


def _names() -> list[str]:
    return sorted(file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.py"))


def _nearest(name: str, known: list[str]) -> str:
    """The "did you mean" of a message; "" if nothing is like it."""
    spelled = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.removeprefix("configs/").lower(), spelled, n=1, cutoff=0.7)
    return f"; did you mean '{spelled[near[0]]}', which comes with mokd_det?" if near else ""
