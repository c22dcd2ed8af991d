"""Random scenes, and the trainer of a config on them a step at a time."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mokd_det.config import TrainSettings
from mokd_det.engine.build import build_trainer
from mokd_det.engine.trainer import MoKDTrainer

__all__ = ["bare_trainer", "random_scenes", "step"]


def random_scenes(
    count: int, height: int, width: int, *, objects: int = 8, classes: int = 80
) -> list[dict[str, Any]]:
    """Detectron2's batch of random images, the same each time; boxes of 0.03 to 0.33 of a side, 8 pixels at least."""
    generator = torch.Generator().manual_seed(0)
    side = torch.tensor([width, height])
    items = []
    for index in range(count):
        low = torch.rand(objects, 2, generator=generator) * 0.6 * side
        size = (0.03 + 0.3 * torch.rand(objects, 2, generator=generator)) * side
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat((low, low + size.clamp(min=8)), 1))
        instances.gt_classes = torch.randint(0, classes, (objects,), generator=generator)
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        items.append({"image": image, "instances": instances, "image_id": index})
    return items


def bare_trainer(cfg: Any) -> MoKDTrainer:
    """The trainer of a config from random weights, student's and teacher's, without hooks and checkpoints."""
    cfg.train.init_checkpoint = ""
    if "teacher" in cfg.model:
        cfg.model.teacher_checkpoint = ""
    torch.manual_seed(0)
    built = build_trainer(cfg, TrainSettings.from_config(cfg.train))
    built.model.train()
    built.storage, built.iter, built.max_iter = EventStorage(), 0, 10**9
    return built


def step(trained: MoKDTrainer) -> None:
    """One optimiser step, as the training loop runs it."""
    with trained.storage:
        trained.run_step()
    trained.storage.step()
    trained.iter += 1
