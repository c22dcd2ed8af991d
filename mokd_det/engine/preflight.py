"""What can be found wrong with a run before any of its processes is started."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from detectron2.config import instantiate
from omegaconf import DictConfig

from mokd_det.checkpoint.reading import require_file
from mokd_det.config import TrainSettings, load_config
from mokd_det.data.catalog import coco_source
from mokd_det.errors import DatasetError

__all__ = ["check_run"]


def check_run(args: argparse.Namespace) -> None:
    """Read the configuration, and see that the weights and data sets are there that it names.

    Raises:
        ConfigError, CheckpointError, DatasetError: as the run itself would raise them, later and in each process.
    """
    cfg = load_config(args.config_file, args.opts, training=not args.eval_only)
    settings = TrainSettings.from_config(cfg.train)
    continues = args.resume and (Path(settings.output_dir) / "last_checkpoint").exists()
    if settings.init_checkpoint and not continues:
        require_file(settings.init_checkpoint, "checkpoint")
    if not args.eval_only and cfg.model.get("teacher_checkpoint"):
        require_file(cfg.model.teacher_checkpoint, "teacher checkpoint")
    for part in ("test",) if args.eval_only else ("train", "test"):
        loader = cfg.dataloader.get(part)
        if isinstance(loader, DictConfig) and loader.get("dataset") is not None:
            _check_dataset(loader.dataset)


def _check_dataset(dataset: str | DictConfig) -> None:
    """What is in the files is checked by the processes that read them."""
    if isinstance(dataset, str):
        source = coco_source(dataset)
        if source is None:
            return
        for what, path in (("file", source.json_file), ("folder", source.image_root)):
            if path is not None and "://" not in path and not os.path.exists(path):
                raise DatasetError(
                    f"data set {what} {path} does not exist{source.hint and '; '}{source.hint}"
                )
    elif not os.path.isdir(str(dataset.get("root"))):
        # One that lies nowhere in particular says what it misses when it is made.
        instantiate(dataset)
