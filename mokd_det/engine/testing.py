"""Evaluation of a model by the configuration's loader and evaluator."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.engine.machine_error import machine_error

__all__ = ["evaluate", "format_results", "write_results"]

logger = logging.getLogger(__name__)

Results = Mapping[str, Mapping[str, float]]


def evaluate(dataloader: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Run ``dataloader.evaluator`` over ``dataloader.test``; the model's mode is restored afterwards.

    Returns:
        {task: {metric: value}} on the main process, {} on the others.

    Raises:
        MachineError: a process that loads data is gone, or the disk is full.
    """
    try:
        results = inference_on_dataset(model, instantiate(dataloader.test), instantiate(dataloader.evaluator))
    except (RuntimeError, OSError) as error:
        lost = machine_error(error, "while evaluating")
        if lost is None:
            raise
        raise lost from error
    if comm.is_main_process() and results:
        logger.info("Results:\n%s", format_results(results))
    return dict(results) if comm.is_main_process() else {}


def format_results(results: Results) -> str:
    """A table with one row per task and metric."""
    rows = [
        (task, metric, value)
        for task, metrics in results.items()
        for metric, value in (metrics.items() if isinstance(metrics, Mapping) else [("", metrics)])
    ]
    return tabulate(rows, headers=("task", "metric", "value"), floatfmt=".3f", tablefmt="simple")


def write_results(results: Results, path: str | Path) -> None:
    """Write results as JSON; what is not finite (no object of a class) becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, (bool, str, int)) or value is None:
            return value
        number = float(value)
        return number if math.isfinite(number) else None

    with atomic_write(path, "w") as handle:
        json.dump(plain(results), handle, indent=2, allow_nan=False)
        handle.write("\n")
