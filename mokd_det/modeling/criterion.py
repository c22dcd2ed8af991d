"""Set losses of ViDT and, as options, ViDT+'s IoU-aware and token-label losses and a varifocal-style class loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from mokd_det.layers import box_iou, cxcywh_to_xyxy, generalized_iou

from .matcher import HungarianMatcher, Matches
from .targets import Targets

__all__ = ["SetCriterion"]


class SetCriterion(nn.Module):
    """Losses between the predictions of all decoder levels and the matched objects.

    Names are ``loss_ce``, ``loss_bbox``, ``loss_giou`` (and ``loss_iouaware``) for the last level, and the same with
    ``_0`` … for the levels before it; every level is matched on its own. Sums run over the batch and are divided by
    the number of objects, averaged over processes and at least 1.

    Args:
        num_classes: classes; there is no background class.
        matcher: assigns objects to queries.
        weights: factor of each kind of loss; its keys choose the losses: "ce", "bbox", "giou", and optionally
            "iouaware", "token_focal", "token_dice".
        class_loss: "focal" (ViDT) or "iou_aware_bce": binary cross entropy whose positive target is p^0.25·IoU^0.75
            and whose negatives weigh p² (with the focal loss's role; not ViDT's, faster on small data).
        alpha, gamma: parameters of the focal loss.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: dict[str, float] | None = None,
        class_loss: str = "focal",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        if class_loss not in ("focal", "iou_aware_bce"):
            raise ValueError(f'class_loss must be "focal" or "iou_aware_bce", not {class_loss!r}')
        self.num_classes, self.matcher, self.class_loss = num_classes, matcher, class_loss
        self.weights = dict(weights or {"ce": 2.0, "bbox": 5.0, "giou": 2.0})
        known = {"ce", "bbox", "giou", "iouaware", "token_focal", "token_dice"}
        if not set(self.weights) <= known:
            raise ValueError(f"unknown losses {sorted(set(self.weights) - known)}; there are {sorted(known)}")
        self.alpha, self.gamma = alpha, gamma

    @property
    def needs_masks(self) -> bool:
        """Whether a loss reads instance masks."""
        return "token_focal" in self.weights or "token_dice" in self.weights

    def weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Multiply each loss by the factor of its kind."""
        kind = {name: name.removeprefix("loss_").rstrip("0123456789").rstrip("_") for name in losses}
        return {name: value * self.weights[kind[name]] for name, value in losses.items()}

    @staticmethod
    def num_objects(targets: Targets, device: torch.device) -> Tensor:
        """Objects of the whole batch over all processes, divided by their number; at least 1."""
        # filled on the device: a copy from the host would wait for it
        count = torch.full((), float(sum(targets.counts)), device=device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(count)
        return (count / comm.get_world_size()).clamp(min=1)

    def forward(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        *,
        iou_logits: Tensor | None = None,
        token_logits: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted losses.

        Args:
            logits: (levels, B, N, classes).
            boxes: (levels, B, N, 4), cxcywh in [0, 1].
            targets: ground truth.
            iou_logits: (levels, B, N, 1), for "iouaware".
            token_logits: per feature level (B, H, W, classes), for the token labels.
        """
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        boxes = boxes.to(logits.dtype)
        matches = self.matcher(logits.detach(), boxes.detach(), targets)
        count = self.num_objects(targets, logits.device).to(logits.dtype)
        labels, target_boxes = targets.labels[matches.target], targets.boxes[matches.target].to(logits.dtype)
        picked = boxes[matches.level, matches.image, matches.query]
        corners, target_corners = cxcywh_to_xyxy(picked), cxcywh_to_xyxy(target_boxes)
        levels = len(logits)

        def per_level(values: Tensor) -> Tensor:
            return values.new_zeros(levels).index_add(0, matches.level, values) / count

        losses = {"ce": self._class_loss(logits, labels, matches, corners, target_corners) / count}
        losses["bbox"] = per_level((picked - target_boxes).abs().sum(-1))
        losses["giou"] = per_level(1 - generalized_iou(corners, target_corners))
        if "iouaware" in self.weights:
            if iou_logits is None:
                raise ValueError('the loss "iouaware" needs a model with an IoU head')
            iou = box_iou(corners, target_corners)[0]
            predicted = iou_logits[matches.level, matches.image, matches.query, 0].to(logits.dtype)
            entropy = F.binary_cross_entropy_with_logits(predicted, iou, reduction="none")
            losses["iouaware"] = per_level(entropy)
        named = {}
        for level in range(levels):
            suffix = "" if level == levels - 1 else f"_{level}"
            named.update({f"loss_{kind}{suffix}": values[level] for kind, values in losses.items()})
        if self.needs_masks:
            if token_logits is None:
                raise ValueError("the token-label losses need a model with a token classifier")
            named.update(self._token_losses(token_logits, targets, count))
        return named

    def _class_loss(
        self, logits: Tensor, labels: Tensor, matches: Matches, corners: Tensor, target_corners: Tensor
    ) -> Tensor:
        """Sum over images, queries and classes, (levels,)."""
        position = (matches.level, matches.image, matches.query, labels)
        if self.class_loss == "focal":
            target = torch.zeros_like(logits).index_put(position, logits.new_ones(()))
            return sigmoid_focal_loss(logits, target, self.alpha, self.gamma).sum((1, 2, 3))
        probability = logits.detach().sigmoid()
        iou = box_iou(corners.detach(), target_corners)[0].clamp(min=1e-6)
        quality = (probability[position] ** 0.25 * iou**0.75).clamp(min=0.01)
        target = torch.zeros_like(logits).index_put(position, quality)
        weight = (probability**2).index_put(position, logits.new_ones(()))
        return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").sum((1, 2, 3))

    def _token_losses(
        self, token_logits: Sequence[Tensor], targets: Targets, count: Tensor
    ) -> dict[str, Tensor]:
        """Focal and dice loss of the patch tokens' classes (ViDT+, token labelling), each summed over the levels."""
        if targets.masks is None:
            raise ValueError("the token-label losses need instance masks in the ground truth")
        canvas = self._label_canvas(targets, token_logits[0].shape[-1])
        focal: Tensor | float = 0.0
        dice: Tensor | float = 0.0
        for logits in token_logits:
            if logits.dtype in (torch.float16, torch.bfloat16):
                logits = logits.float()
            # stays float32, as published: its own arithmetic is part of what the goldens pin down
            target = F.adaptive_avg_pool2d(canvas, logits.shape[1:3]).permute(0, 2, 3, 1).flatten(1, 2)
            logits = logits.flatten(1, 2)  # (B, cells, classes)
            entries = sigmoid_focal_loss(logits, target, self.alpha, self.gamma)
            focal = focal + entries.mean(1).sum() / count
            probability, truth = logits.sigmoid().flatten(1), target.flatten(1)
            overlap = 2 * (probability * truth).sum(1) + 1
            dice = dice + (1 - overlap / (probability.sum(1) + truth.sum(1) + 1)).sum() / count
        return {"loss_token_focal": focal, "loss_token_dice": dice}

    def _label_canvas(self, targets: Targets, channels: int) -> Tensor:
        """One-hot label of the first object that covers each pixel, (B, channels, H, W) float32.

        Channel 0 says "some object". With one channel more than classes, class c is channel c + 1; with as many, it
        is channel c, as in published models, whose class 0 (COCO's unused category id) never occurs.
        """
        shift = channels - self.num_classes
        if shift not in (0, 1):
            raise ValueError(
                f"the token classifier has {channels} outputs; {self.num_classes} classes need one more"
            )
        assert targets.masks is not None
        height, width = targets.masks[0].shape[-2:]
        canvas = torch.zeros(
            len(targets.counts), channels, height, width, device=targets.labels.device
        ).contiguous(memory_format=torch.channels_last)  # also the order in which the published model pools
        for image, (masks, start) in enumerate(zip(targets.masks, targets.offsets)):
            if not len(masks):
                continue
            covered = masks.any(0)
            labels = targets.labels[start : start + len(masks)][masks.float().argmax(0)]
            canvas[image].scatter_(0, ((labels + shift) * covered)[None], 1.0)
            canvas[image, 0] = covered.float()
        return canvas
