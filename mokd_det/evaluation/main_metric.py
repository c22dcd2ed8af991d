"""What a run is judged by: its evaluator says so."""

from __future__ import annotations

from detectron2.utils.registry import locate
from omegaconf import DictConfig

__all__ = ["main_metric"]

_DEFAULT = "bbox/AP"


def main_metric(config: DictConfig) -> str:
    """``task/metric`` of the evaluation results, from the attribute ``main_metric`` of the evaluator's class.

    An evaluator without that attribute counts as one of detections: "bbox/AP".
    """
    evaluator = config.dataloader.get("evaluator")
    target = None if evaluator is None else evaluator.get("_target_")
    target = locate(target) if isinstance(target, str) else target
    return str(getattr(target, "main_metric", _DEFAULT))
