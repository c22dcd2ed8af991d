"""The configs of this project, found with or without a checkout, in Detectron2's convention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mokd_det.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["CONFIGS", "get_config", "get_config_file"]

_INSTALLED = Path(__file__).with_name("configs")
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).resolve().parents[2] / "configs"
"""Their folder: of the installed package, or of the checkout."""


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
