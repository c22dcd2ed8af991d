"""Reading a LazyConfig file so that every mistake in it is reported before anything runs."""

from __future__ import annotations

import builtins
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import LazyConfig
from omegaconf import DictConfig

from mokd_det.config.call_arguments import check_call_arguments
from mokd_det.config.near_keys import did_you_mean
from mokd_det.config.overrides import apply_overrides
from mokd_det.config.own_data import fill_from_data
from mokd_det.config.references import check_references
from mokd_det.config.train_settings import TrainSettings, filled_train_section
from mokd_det.errors import ConfigError, MoKDError
from mokd_det.model_zoo import find_config_file

__all__ = ["REQUIRED_KEYS", "load_config", "run_program"]

REQUIRED_KEYS = ("model", "dataloader", "optimizer", "lr_multiplier", "objectives", "balancer", "train")
"""Top-level names a configuration must define; others (parts that the file builds on) are free."""


def run_program(file: str) -> Any:
    """What a LazyConfig file defines; an error that it raises comes as it is."""
    original_import = builtins.__import__
    try:
        return LazyConfig.load(file)
    finally:
        # Detectron2 replaces it while a file runs, and does not put it back when the file fails.
        builtins.__import__ = original_import


def load_config(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, training: bool = True
) -> DictConfig:
    """Load a LazyConfig file, apply overrides, fill in the defaults of ``train`` and check all keys.

    Args:
        path: a ``.py`` or ``.yaml`` file, or the name of a config of this project.
        overrides: see :func:`mokd_det.config.overrides.apply_overrides`.
        training: whether a training follows, and not only an evaluation (which needs less of a user's own
            data, see :func:`mokd_det.config.own_data.fill_from_data`).

    Raises:
        ConfigError: the file is missing or fails to run; a required key is missing; a key of ``train``, an
            argument of a call or an override does not exist or has the wrong type.
        DatasetError: own data (:class:`mokd_det.data.OwnData`) that cannot be used.
    """
    name = find_config_file(path)
    try:
        cfg = run_program(name)
    except MoKDError:
        raise
    # A config file is a program: whatever it raises is a mistake in the file.
    except Exception as error:
        reason = str(error.__cause__ or error).strip() or type(error).__name__
        if "U+FEFF" in reason:
            reason = "it is saved with a byte order mark; save it as UTF-8 without one"
        raise ConfigError(
            f"config file '{name}' fails with {type(error).__name__}: {reason.splitlines()[0]}"
        ) from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"config file '{name}' must define named sections, not a list")
    for key in REQUIRED_KEYS:
        if key not in cfg:
            hint = did_you_mean(key, [str(other) for other in cfg])
            raise ConfigError(f"config file '{name}' does not define '{key}'; {hint}")
    if not isinstance(cfg.train, DictConfig):
        raise ConfigError(f"train in config file '{name}' must be a mapping")
    cfg.train = filled_train_section(cfg.train)
    cfg.setdefault("trackers", {})
    apply_overrides(cfg, overrides)
    if "data" in cfg:
        check_references(cfg, ["data"])
    fill_from_data(cfg, overrides, training=training)
    check_references(cfg, REQUIRED_KEYS)
    TrainSettings.from_config(cfg.train)
    check_call_arguments(cfg)
    return cfg
