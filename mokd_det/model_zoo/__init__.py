"""What this project brings with it, found with or without a checkout: the configs, in Detectron2's convention, the
records of the runs that its results are from, and the demo's teacher and first weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mokd_det.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["CONFIGS", "RECORDS", "WEIGHTS", "get_config", "get_config_file"]


def _folder(installed: str, checkout: str) -> Path:
    packed = Path(__file__).with_name(installed)
    return packed if packed.is_dir() else Path(__file__).resolve().parents[2] / checkout


CONFIGS = _folder("configs", "configs")
"""Folder of the configs: of the installed package, or of the checkout."""
RECORDS = _folder("records", "docs/results/records")
"""Folder of the records that docs/results.md is made from, likewise."""
WEIGHTS = Path(__file__).with_name("weights")
"""Folder of the demo's weights, in float16; ``make demo-teacher`` trains them anew."""


def get_config_file(config_path: str) -> str:
    """The file of a config of this project.

    Args:
        config_path: below ``configs``, e.g. "COCO/mokd_vidt_nano.py".

    Raises:
        ConfigError: there is no such config.
    """
    file = CONFIGS / config_path
    if not file.is_file():
        raise ConfigError(f"there is no config '{config_path}' in {CONFIGS}")
    return str(file)


def get_config(config_path: str) -> DictConfig:
    """A config of this project, as ``--config-file`` loads it.

    Args:
        config_path: below ``configs``, e.g. "COCO/mokd_vidt_nano.py".

    Raises:
        ConfigError: there is no such config.
    """
    # Tools that only look for a file need not wait for what reads it.
    from mokd_det.config import load_config

    return load_config(get_config_file(config_path), training=False)
