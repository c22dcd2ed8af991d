"""What a training trains, from its configuration and one of its checkpoints, to be looked at again."""

from __future__ import annotations

import copy
import os
from collections.abc import Container

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from mokd_det.contract import as_task
from mokd_det.engine.checkpointing import AtomicCheckpointer

__all__ = ["load_training_model"]


def load_training_model(
    cfg: DictConfig,
    checkpoint: str | os.PathLike[str],
    device: torch.device,
    parts: Container[str] | None = None,
) -> nn.Module:
    """The whole model of a configuration, of a distillation with teacher and method, in training mode.

    A teacher's cache is left out: the teacher itself says the same but for the cache's rounding, wherever that folder
    is by now.

    Args:
        cfg: the configuration, which stays as it is.
        checkpoint: of a training of it.
        device: where the model goes.
        parts: those of the model's ``checkpoint_parts()`` that the file has; None: all.

    Raises:
        ConfigError: a mistake in the configuration.
        CheckpointError: the weights are missing or do not fit.
    """
    node = copy.deepcopy(cfg).model
    if node.get("teacher_cache") is not None:
        node.teacher_cache = None
    model: nn.Module = instantiate(node).to(device)
    task = as_task(model)
    kept = {k: part for k, part in task.checkpoint_parts().items() if parts is None or k in parts}
    AtomicCheckpointer(task.eval_model, "", **kept).load(os.fspath(checkpoint))
    return model.train()
