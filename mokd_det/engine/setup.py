"""What every tool does first: arguments, configuration, output directory, logging, seeds, a record of the run."""

from __future__ import annotations

import argparse
import logging
import os
import platform
from pathlib import Path

import torch
from detectron2.config import LazyConfig
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from mokd_det.config import TrainSettings
from mokd_det.config.own_data import own_data_summary
from mokd_det.errors import ConfigError
from mokd_det.folder_lock import lock_folder

__all__ = ["default_setup", "pick_device", "processor_name"]

logger = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """The device ``train.device`` means here.

    Raises:
        ConfigError: "cuda" without a GPU, or "cpu" for several processes on a machine with GPUs (they were
            started for the GPUs).
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device is 'cuda', but this machine has no GPU that torch can use; take 'cpu' or 'auto'"
        )
    if name == "cpu" and torch.cuda.is_available() and comm.get_world_size() > 1:
        raise ConfigError(
            "train.device is 'cpu' with several processes on a machine with GPUs; "
            "hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    return torch.device("cuda" if torch.cuda.is_available() and name != "cpu" else "cpu")


def default_setup(cfg: DictConfig, args: argparse.Namespace) -> TrainSettings:
    """Make the output directory and lock it, start the loggers, log the environment, save the resolved configuration,
    seed.

    All ranks get the same seed: they build equal models (a teacher without a checkpoint too), and per-rank randomness
    comes from the data loader and the trainer, which seed for themselves.

    Returns:
        The checked ``train`` section.

    Raises:
        ConfigError: the output directory cannot be made, another process has it, or see
            :meth:`TrainSettings.from_config`.
    """
    settings = TrainSettings.from_config(cfg.train)
    output_dir = Path(settings.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.output_dir '{output_dir}' cannot be made: {error}") from error
    if not os.access(output_dir, os.W_OK):
        raise ConfigError(f"train.output_dir '{output_dir}' is not writable")
    _lock(output_dir)
    rank = comm.get_rank()
    for name in ("fvcore", "detectron2", "mokd_det"):
        setup_logger(str(output_dir), distributed_rank=rank, name=name, abbrev_name=name)
    logger.info("Rank %d of %d; arguments: %s", rank, comm.get_world_size(), vars(args))
    if comm.is_main_process():
        logger.info("Python %s, torch %s, %s", platform.python_version(), torch.__version__, _hardware())
        (output_dir / "environment.txt").write_text(collect_env_info() + "\n")
        LazyConfig.save(cfg, str(output_dir / "config.yaml"))
        logger.info("The resolved configuration and the environment are in %s", output_dir)
    for line in own_data_summary(cfg):
        logger.info("%s", line)
    seed_all_rng(settings.seed)
    return settings


def _lock(output_dir: Path) -> None:
    """Take the output directory for this run, on all ranks or on none."""
    refusal = ""
    if comm.is_main_process():
        try:
            lock_folder(output_dir, "train.output_dir")
        except ConfigError as error:
            refusal = str(error)
    refusal = comm.all_gather(refusal)[0]
    if refusal:
        raise ConfigError(refusal)


def processor_name() -> str:
    """Of the CPU."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads per process"
