"""The objectives of finished trainings on images that none of them was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from mokd_det.balancing import FixedWeights, Objectives
from mokd_det.balancing.log_objective import per_objective
from mokd_det.config import TrainSettings, load_config
from mokd_det.contract import as_task
from mokd_det.engine.seeded_rng import seeded_rng, step_seed
from mokd_det.engine.setup import pick_device
from mokd_det.engine.training_model import load_training_model
from mokd_det.errors import ConfigError

__all__ = ["ValidationLosses", "validation_losses"]

SEED = 0
"""Of the order and the views of the images and of the dropout: the same ones for every run."""


@dataclass(frozen=True)
class ValidationLosses:
    """The objectives of one run.

    Attributes:
        values: objective → mean over the images.
        method: what the distillation compares, in words; "" for a student alone. Losses of equal methods compare.
        weights: objective → fixed weight; None: the run's balancer is another one.
        images: how many there were.
    """

    values: Mapping[str, float]
    method: str
    weights: Mapping[str, float] | None
    images: int


def validation_losses(run: Path, dataset: str, images: int) -> ValidationLosses:
    """Mean objectives of a finished training over a data set, by its training forward, dropout included.

    Every run sees the same images in the same views under the same dropout masks; no weight changes.

    Args:
        run: output folder of the training: its ``config.yaml`` and ``model_final.pth``.
        dataset: registered name of data that the training's loader can read.
        images: how many at most, rounded down to whole batches.

    Raises:
        ConfigError: the folder holds no finished training, or the data set has fewer images than a batch.
        CheckpointError: its weights do not fit its configuration.
    """
    config, weights = run / "config.yaml", run / "model_final.pth"
    for file in (config, weights):
        if not file.is_file():
            raise ConfigError(f"'{run}' holds no finished training: it has no {file.name}")
    given = load_config(config, [], training=False).dataloader.train.get("dataset")
    if not isinstance(given, str):
        raise ConfigError(
            f"'{run}' is no detector's training: its dataloader.train.dataset is no registered name"
        )
    cfg = load_config(config, [f"dataloader.train.dataset={dataset}", f"dataloader.train.seed={SEED}"])
    if cfg.dataloader.train.get("draw") is not None:
        cfg.dataloader.train.draw = None  # of the training's images, not of these
    batch_size = cfg.dataloader.train.total_batch_size
    if images < batch_size:
        raise ConfigError(f"--images {images} is less than a batch of '{run}', {batch_size}")
    device = pick_device(TrainSettings.from_config(cfg.train).device)
    model = load_training_model(cfg, weights, device)
    task = as_task(model)
    loader = instantiate(cfg.dataloader.train)
    patterns = OmegaConf.to_container(cfg.objectives, resolve=True)
    objectives = Objectives({name: group for name, group in patterns.items() if group is not None})
    total = torch.zeros(len(objectives), dtype=torch.float64)
    count = images // batch_size
    for number, batch in enumerate(islice(loader, count)):
        with torch.no_grad(), seeded_rng(step_seed(SEED, number, 0, 0), device):
            total += objectives(model(task.prepare_batch(batch))).double().cpu()
    values = dict(zip(objectives.names, (total / count).tolist(), strict=True))
    method = _method(cfg.model.method) if len(objectives) > 1 and "method" in cfg.model else ""
    return ValidationLosses(values, method, _fixed_weights(cfg.balancer, objectives), count * batch_size)


def _method(node: DictConfig) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in node.items() if key != "_target_")
    name = str(node["_target_"]).rpartition(".")[2]
    return f"{name} ({settings})" if settings else name


def _fixed_weights(node: DictConfig, objectives: Objectives) -> Mapping[str, float] | None:
    target = node["_target_"]
    if (locate(target) if isinstance(target, str) else target) is not FixedWeights:
        return None
    given = OmegaConf.to_container(node).get("weights", 1.0)
    weights = per_objective(given, objectives.names, "balancer.weights").tolist()
    return dict(zip(objectives.names, weights, strict=True))
