"""Distances of boxes (cx, cy, w, h) relative to the image."""

from __future__ import annotations

import torch
from torch import Tensor

from mokd_det.layers import cxcywh_to_xyxy, generalized_iou

__all__ = ["box_distance", "generalized_iou_distance", "with_area"]


def box_distance(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of boxes (…, 4), broadcast: (…)."""
    return (a - b).abs().sum(-1)


def generalized_iou_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 − GIoU of boxes (…, 4), broadcast: (…), in [0, 2]."""
    # Rounding leaves the IoU of equal boxes a little above 1; a negative loss has no logarithm.
    corners = (cxcywh_to_xyxy(with_area(boxes)) for boxes in (a, b))
    return (1 - generalized_iou(*corners)).clamp_min(0)


def with_area(boxes: Tensor) -> Tensor:
    """The boxes with sides of at least 1e-6: an area of 0 (a size that underflows) would make the GIoU 0/0."""
    return torch.cat((boxes[..., :2], boxes[..., 2:].clamp_min(1e-6)), dim=-1)
