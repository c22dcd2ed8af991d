"""Building trainers of toy models, and comparing what they end with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger
from torch import nn

from mokd_det.balancing import Balancer, FixedWeights, Objectives
from mokd_det.engine import MoKDTrainer
from tests.engine.toy import ToyDetector, ToyLoader

PATTERNS = {"cls": ["loss_ce"], "box": ["loss_bbox", "loss_extra"]}


def make_trainer(
    balancer: Balancer | None = None,
    *,
    model: nn.Module | None = None,
    loader: Any = None,
    patterns: dict[str, list[str]] | None = None,
    lr: float = 1e-2,
    init_seed: int = 0,
    **options: Any,
) -> MoKDTrainer:
    """A trainer of a freshly initialised toy detector; ``options`` go to :class:`MoKDTrainer`."""
    if model is None:
        torch.manual_seed(init_seed)
        model = ToyDetector()
    return MoKDTrainer(
        model,
        ToyLoader() if loader is None else loader,
        torch.optim.AdamW(model.parameters(), lr=lr),
        objectives=Objectives(PATTERNS if patterns is None else patterns),
        balancer=FixedWeights() if balancer is None else balancer,
        **options,
    )


def snapshot(trainer: MoKDTrainer) -> dict[str, Any]:
    """A deep copy of all state that a step may change, the iteration apart."""

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().clone()
        if isinstance(value, dict):
            return {key: copied(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [copied(item) for item in value]
        return value

    state = copied({"model": dict(trainer.module.state_dict()), **trainer.state_dict()})
    state.pop("iteration")
    return state


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Paths at which two nested states are not bit-equal."""
    if isinstance(first, torch.Tensor):
        return [] if isinstance(second, torch.Tensor) and torch.equal(first, second) else [path]
    if isinstance(first, dict):
        if not isinstance(second, dict) or set(first) != set(second):
            return [path]
        return [found for key in first for found in differences(first[key], second[key], f"{path}.{key}")]
    if isinstance(first, (list, tuple)):
        if not isinstance(second, (list, tuple)) or len(first) != len(second):
            return [path]
        return [
            found
            for key, pair in enumerate(zip(first, second, strict=True))
            for found in differences(*pair, f"{path}.{key}")
        ]
    return [] if first == second else [path]


@contextmanager
def loggers_restored() -> Iterator[None]:
    """Undo what a tool's set-up does to the loggers of this process: handlers, levels, propagation."""
    names = ("fvcore", "detectron2", "mokd_det")
    before = [
        (logger, logger.handlers[:], logger.level, logger.propagate)
        for logger in map(logging.getLogger, names)
    ]
    try:
        yield
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.level, logger.propagate = handlers, level, propagate
        # Detectron2 remembers for which directories it has set a logger up.
        setup_logger.cache_clear()


def run_one_step(trainer: MoKDTrainer, iteration: int = 0) -> EventStorage:
    """One step outside of ``train``; returns the storage it wrote to."""
    trainer.iter = iteration
    with EventStorage(iteration) as trainer.storage:
        trainer.run_step()
    return trainer.storage
