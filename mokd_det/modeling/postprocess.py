"""From query predictions to scored detections."""

from __future__ import annotations

import torch
from torch import Tensor

from mokd_det.layers import cxcywh_to_xyxy

__all__ = ["top_predictions"]


def top_predictions(
    logits: Tensor, boxes: Tensor, sizes: Tensor, count: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Best ``count`` of all (query, class) pairs of each image, without suppression or threshold.

    Args:
        logits: (B, N, classes).
        boxes: (B, N, 4) cxcywh in [0, 1].
        sizes: original (height, width) of each image, (B, 2).
        count: detections per image; fewer if there are fewer pairs.

    Returns:
        scores (B, K), labels (B, K) int64, and boxes (B, K, 4) as x1, y1, x2, y2 in pixels of the original image,
        not clipped to it. Scores descend.
    """
    classes = logits.shape[-1]
    scores, index = logits.sigmoid().flatten(1).topk(min(count, logits[0].numel()), dim=1)
    query = torch.div(index, classes, rounding_mode="floor")
    picked = cxcywh_to_xyxy(boxes).gather(1, query[..., None].expand(-1, -1, 4))
    height, width = sizes.to(picked).unbind(1)
    scale = torch.stack((width, height, width, height), 1)
    return scores, index % classes, picked * scale[:, None]
