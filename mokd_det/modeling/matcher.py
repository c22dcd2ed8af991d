"""Optimal assignment of objects to queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mokd_det.errors import InvalidLossError
from mokd_det.layers import cxcywh_to_xyxy, generalized_iou

from .targets import Targets

__all__ = ["HungarianMatcher", "Matches"]


class Matches:
    """Matched pairs of all levels, as flat index vectors on the predictions' device.

    Attributes:
        level, image, query: position of each matched prediction, (M,) int64.
        target: row of the matched object in :attr:`Targets.labels`, (M,) int64.
        per_level: [level][image] -> (queries, objects of that image), numpy, queries ascending.
    """

    def __init__(self, per_level: list[list[tuple]], offsets: Sequence[int], device: torch.device) -> None:
        self.per_level = per_level
        rows = [
            (level, image, int(query), offsets[image] + int(obj))
            for level, images in enumerate(per_level)
            for image, (queries, objects) in enumerate(images)
            for query, obj in zip(queries, objects)
        ]
        table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
        self.level, self.image, self.query, self.target = table.to(device, non_blocking=True).unbind(1)


class HungarianMatcher(nn.Module):
    """Minimises class, L1 and GIoU cost per image and level (DETR's matching with Deformable DETR's focal cost).

    The costs of all levels and images are computed in one go and reach the host in one copy.

    Args:
        cost_class, cost_bbox, cost_giou: weights of the three costs.
        alpha, gamma: parameters of the focal class cost.
    """

    def __init__(
        self,
        cost_class: float = 2.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou
        self.alpha, self.gamma = alpha, gamma

    def costs(self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
        """Cost of every (query, object) pair, (levels, B, N, T), at least float32.

        Args:
            logits: (levels, B, N, classes).
            boxes: (levels, B, N, 4), cxcywh.
            labels: (B, T) padded with 0.
            target_boxes: (B, T, 4), cxcywh, padded with any valid box.
        """
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        boxes = boxes.to(logits.dtype)
        target_boxes = target_boxes.to(logits.dtype)
        index = labels[None, :, None, :].expand(*logits.shape[:3], -1)
        probability = logits.gather(-1, index).sigmoid()
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        distance = torch.cdist(boxes, target_boxes.expand(len(boxes), -1, -1, -1), p=1)
        giou = generalized_iou(
            cxcywh_to_xyxy(boxes)[..., :, None, :], cxcywh_to_xyxy(target_boxes)[None, :, None, :, :]
        )
        return self.cost_bbox * distance + self.cost_class * (positive - negative) - self.cost_giou * giou

    @torch.no_grad()
    def forward(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matches:
        """Match (levels, B, N, classes) logits and (levels, B, N, 4) boxes with the targets.

        Raises:
            InvalidLossError: a prediction is NaN or infinite; names the level and the image's position.
        """
        offsets = targets.offsets
        if not len(targets.labels):
            empty = [[((), ())] * len(targets.counts) for _ in range(len(logits))]
            return Matches(empty, offsets, logits.device)
        labels, target_boxes = targets.padded()
        with torch.autocast(device_type=logits.device.type, enabled=False):
            costs = self.costs(logits, boxes, labels, target_boxes).cpu().numpy()
        matches = []
        for level, level_costs in enumerate(costs):
            row = []
            for image, count in enumerate(targets.counts):
                cost = level_costs[image, :, :count]
                try:
                    row.append(linear_sum_assignment(cost))
                except ValueError as error:
                    raise InvalidLossError(
                        f"the predictions of decoder level {level} are NaN or infinite for image "
                        f"{targets.describe(image)}: no matching is possible"
                    ) from error
            matches.append(row)
        return Matches(matches, offsets, logits.device)
