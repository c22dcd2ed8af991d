"""ViDT written plainly: the yardstick of what the package's formulation gains, and a second opinion on its numbers.

    plain = plain_vidt(model)  # a copy with the same weights

What differs, and nothing else does: every image has its own DET tokens from the first block on; patches are merged by
strided slices; deformable attention projects every cell, reads level by level with ``grid_sample`` and stacks what it
read; each decoder level is matched and its losses computed on its own, image by image. So the published models and
Deformable DETR's PyTorch reference compute.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mokd_det.layers import (
    MultiScaleDeformableAttention,
    cxcywh_to_xyxy,
    generalized_iou,
    masked_sine_encoding,
)
from mokd_det.modeling import ViDT
from mokd_det.modeling.backbone import DetFeatures, SwinRAM, resize_mask
from mokd_det.modeling.backbone.swin_ram import PatchMerging
from mokd_det.modeling.criterion import SetCriterion
from mokd_det.modeling.matcher import HungarianMatcher
from mokd_det.modeling.targets import Targets

__all__ = ["plain_vidt"]


def plain_vidt(model: ViDT) -> ViDT:
    """A copy of a Swin-based ViDT that computes the same plainly.

    Raises:
        ValueError: a part of the model has no plain counterpart here.
    """
    plain = copy.deepcopy(model)
    unused = set(PLAIN)
    for module in plain.modules():
        kind = type(module)
        if kind in PLAIN:
            module.__class__ = PLAIN[kind]
            unused.discard(kind)
    if unused:
        raise ValueError(f"the model has no {', '.join(sorted(kind.__name__ for kind in unused))}")
    return plain


class PlainMerging(PatchMerging):
    """The four neighbours by strided slices."""

    def merge_patches(self, patches: Tensor) -> Tensor:
        height, width = patches.shape[1:3]
        patches = F.pad(patches, (0, 0, 0, width % 2, 0, height % 2))
        corners = [patches[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class PlainSwin(SwinRAM):
    """Swin with the DET tokens of every image."""

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetFeatures:
        patches = self.patch_embed(images)
        padding_mask = resize_mask(padding_mask, tuple(max(side // 8, 1) for side in patches.shape[1:3]))
        det = self.det_token.expand(len(images), -1, -1)
        features, patch_pos = [], None
        for i, stage in enumerate(self.layers):
            if i == 3:
                padding_mask = resize_mask(padding_mask, tuple(patches.shape[1:3]))
                patch_pos = masked_sine_encoding(padding_mask, patches.shape[-1])
            for block in stage.blocks:
                patches, det = block(patches, det, self.det_pos_embed, patch_pos, padding_mask)
            if i > 0:
                features.append(patches.permute(0, 3, 1, 2))
            if i < 3:
                det = stage.downsample.widen_det(det)
            patches = stage.downsample.merge_patches(patches)
        features.append(patches.permute(0, 3, 1, 2))
        return DetFeatures(features, det, self.det_pos_embed)


def plain_kernel(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Deformable attention level by level, as Deformable DETR's PyTorch reference writes it."""
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    grids = 2 * locations - 1
    sampled = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], 1)):
        height, width = shapes[level]
        part = part.flatten(2).transpose(1, 2).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(part, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


class PlainDeformableAttention(MultiScaleDeformableAttention):
    """Every cell is projected, and zeroed where it is padding, before it is read."""

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        value: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        value = self.value_proj(value)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        locations, weights = self.sampling(query, reference, shapes)
        value = value.view(*value.shape[:2], self.num_heads, -1)
        return self.output_proj(plain_kernel(value, shapes, locations, weights))


class PlainMatcher(HungarianMatcher):
    """The costs of all images of one level against all objects, solved image by image."""

    @torch.no_grad()
    def match(self, logits: Tensor, boxes: Tensor, targets: Targets) -> list[tuple[Tensor, Tensor]]:
        """Matched queries and objects of each image from (B, N, classes) and (B, N, 4)."""
        batch, queries = logits.shape[:2]
        probability = logits.flatten(0, 1).sigmoid()
        flat = boxes.flatten(0, 1)
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        classes = positive[:, targets.labels] - negative[:, targets.labels]
        distance = torch.cdist(flat, targets.boxes.to(flat.dtype), p=1)
        giou = generalized_iou(
            cxcywh_to_xyxy(flat)[:, None], cxcywh_to_xyxy(targets.boxes.to(flat.dtype))[None]
        )
        cost = self.cost_bbox * distance + self.cost_class * classes - self.cost_giou * giou
        cost = cost.view(batch, queries, -1).cpu()
        found = [
            linear_sum_assignment(part[image]) for image, part in enumerate(cost.split(targets.counts, -1))
        ]
        return [(torch.as_tensor(rows), torch.as_tensor(columns)) for rows, columns in found]


class PlainCriterion(SetCriterion):
    """ViDT's three losses, level by level."""

    def forward(self, logits: Tensor, boxes: Tensor, targets: Targets, **_: object) -> dict[str, Tensor]:
        if set(self.weights) != {"ce", "bbox", "giou"} or self.class_loss != "focal":
            raise ValueError("the plain criterion has the losses ce (focal), bbox and giou")
        count = self.num_objects(targets, logits.device).to(logits.dtype)
        losses = {}
        for level, (level_logits, level_boxes) in enumerate(zip(logits, boxes)):
            suffix = "" if level == len(logits) - 1 else f"_{level}"
            for kind, value in self._level(level_logits, level_boxes, targets).items():
                losses[f"loss_{kind}{suffix}"] = value / count
        return losses

    def _level(self, logits: Tensor, boxes: Tensor, targets: Targets) -> dict[str, Tensor]:
        matches = self.matcher.match(logits.detach(), boxes.detach(), targets)
        image = torch.cat([torch.full_like(rows, i) for i, (rows, _) in enumerate(matches)])
        query = torch.cat([rows for rows, _ in matches])
        row = torch.cat([columns + start for (_, columns), start in zip(matches, targets.offsets)])
        wanted = torch.zeros_like(logits)
        wanted[image, query, targets.labels[row]] = 1.0
        probability = logits.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        right = probability * wanted + (1 - probability) * (1 - wanted)
        balance = self.alpha * wanted + (1 - self.alpha) * (1 - wanted)
        picked, truth = boxes[image, query], targets.boxes[row].to(boxes.dtype)
        overlap = generalized_iou(cxcywh_to_xyxy(picked), cxcywh_to_xyxy(truth))
        return {
            "ce": (balance * entropy * (1 - right) ** self.gamma).sum(),
            "bbox": F.l1_loss(picked, truth, reduction="sum"),
            "giou": (1 - overlap).sum(),
        }


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    PatchMerging: PlainMerging,
    SwinRAM: PlainSwin,
    MultiScaleDeformableAttention: PlainDeformableAttention,
    HungarianMatcher: PlainMatcher,
    SetCriterion: PlainCriterion,
}
