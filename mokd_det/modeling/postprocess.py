"""From query predictions to scored detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from mokd_det.layers import cxcywh_to_xyxy

__all__ = ["as_instances", "original_sizes", "top_predictions"]


def original_sizes(batched_inputs: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """(height, width) of each image of Detectron2's batch before its resizing, as far as the batch tells."""
    return [
        (int(item.get("height", item["image"].shape[-2])), int(item.get("width", item["image"].shape[-1])))
        for item in batched_inputs
    ]


def as_instances(
    sizes: Sequence[tuple[int, int]], scores: Tensor, labels: Tensor, boxes: Tensor
) -> list[dict[str, Instances]]:
    """Detectron2's output, one dict per image, of scores and labels (B, D) and boxes (B, D, 4)."""
    results = []
    for size, score, label, box in zip(sizes, scores, labels, boxes, strict=True):
        instances = Instances(size)
        instances.pred_boxes, instances.scores, instances.pred_classes = Boxes(box), score, label
        results.append({"instances": instances})
    return results


def top_predictions(
    logits: Tensor, boxes: Tensor, sizes: Tensor, count: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Best ``count`` (or all) of the (query, class) pairs of each image, without suppression or threshold.

    Args:
        logits: (B, N, classes).
        boxes: (B, N, 4) cxcywh in [0, 1].
        sizes: original (height, width) of each image, (B, 2).

    Returns:
        scores (B, K), descending, labels (B, K) int64, and boxes (B, K, 4) as x1, y1, x2, y2 in pixels of the original
        image, not clipped to it.
    """
    classes = logits.shape[-1]
    scores, index = logits.sigmoid().flatten(1).topk(min(count, logits[0].numel()), dim=1)
    query = torch.div(index, classes, rounding_mode="floor")
    picked = cxcywh_to_xyxy(boxes).gather(1, query[..., None].expand(-1, -1, 4))
    height, width = sizes.to(picked).unbind(1)
    scale = torch.stack((width, height, width, height), 1)
    return scores, index % classes, picked * scale[:, None]
