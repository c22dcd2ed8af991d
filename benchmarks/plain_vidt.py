"""ViDT written plainly: the yardstick of what the package's formulation gains, and a second opinion on its numbers.

    plain = plain_vidt(model)  # a copy with the same weights

What differs, and nothing else does: windows are cut out of a padded and rolled map by permuted copies, every attention
is a product, its bias and mask made anew, a softmax and a product; deformable attention reads level by level with
``grid_sample`` and stacks what it read; each decoder level is matched and its losses computed on its own, image by
image. So the published models and Deformable DETR's PyTorch reference compute.
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
    ReconfiguredAttention,
    cxcywh_to_xyxy,
    generalized_iou,
    masked_sine_encoding,
)
from mokd_det.modeling import ViDT
from mokd_det.modeling.backbone import DetFeatures, SwinRAM, resize_mask
from mokd_det.modeling.backbone.swin_ram import Block, PatchMerging
from mokd_det.modeling.criterion import SetCriterion
from mokd_det.modeling.decoder import DecoderLayer
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


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of (..., N, D) queries to (..., K, D) keys and values."""
    logits = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(-1) @ value


def partition(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) -> (B·windows, size², C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // size, size, width // size, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size * size, channels)


def reverse(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """Inverse of :func:`partition`."""
    x = windows.view(-1, height // size, width // size, size, size, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, windows.shape[-1])


def shift_mask(height: int, width: int, size: int, shift: int, like: Tensor) -> Tensor:
    """Swin's mask of shifted windows, (windows, size², size²)."""
    regions = like.new_zeros(1, height, width, 1)
    bands = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
    count = 0
    for rows in bands:
        for columns in bands:
            regions[:, rows, columns] = count
            count += 1
    regions = partition(regions, size).squeeze(-1)
    difference = regions.unsqueeze(1) - regions.unsqueeze(2)
    return difference.masked_fill(difference != 0, -100.0).masked_fill(difference == 0, 0.0)


def heads_of(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, N, parts·C) -> ``parts`` tensors (B, heads, N, C / heads)."""
    batch, tokens, channels = x.shape
    return x.reshape(batch, tokens, parts, heads, channels // parts // heads).permute(2, 0, 3, 1, 4).unbind(0)


class PlainAttention(ReconfiguredAttention):
    """Reconfigured attention by copies and matrix products."""

    def forward(
        self,
        patches: Tensor,
        det: Tensor,
        *,
        shift: int = 0,
        patch_pos: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self._windows(patches, shift), self._det(det, patches, patch_pos, padding_mask)

    def _windows(self, patches: Tensor, shift: int) -> Tensor:
        _, height, width, channels = patches.shape
        size, heads = self.window_size, self.num_heads
        patches = F.pad(patches, (0, 0, 0, -width % size, 0, -height % size))
        full_h, full_w = patches.shape[1:3]
        if shift:
            patches = torch.roll(patches, (-shift, -shift), (1, 2))
        query, key, value = heads_of(self.qkv(partition(patches, size)), 3, heads)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        bias = bias.view(size**2, size**2, heads).permute(2, 0, 1).contiguous().unsqueeze(0)
        if shift:
            mask = shift_mask(full_h, full_w, size, shift, patches)
            bias = (bias + mask.unsqueeze(1)).repeat(len(patches), 1, 1, 1)
        out = attend(query, key, value, bias).transpose(1, 2).reshape(-1, size**2, channels)
        out = reverse(self.proj(out), size, full_h, full_w)
        if shift:
            out = torch.roll(out, (shift, shift), (1, 2))
        return out[:, :height, :width].contiguous()

    def _det(
        self, det: Tensor, patches: Tensor, patch_pos: Tensor | None, padding_mask: Tensor | None
    ) -> Tensor:
        query, key, value = heads_of(self.qkv(det), 3, self.num_heads)
        bias = None
        if patch_pos is not None and padding_mask is not None:
            channels = det.shape[-1]
            keys = (patches + patch_pos.to(patches.dtype)).flatten(1, 2)
            both = F.linear(keys, self.qkv.weight[channels:], self.qkv.bias[channels:])
            patch_key, patch_value = heads_of(both, 2, self.num_heads)
            key, value = torch.cat((patch_key, key), 2), torch.cat((patch_value, value), 2)
            padded = F.pad(padding_mask.flatten(1), (0, det.shape[1])).to(query.dtype)
            bias = (padded * -100.0)[:, None, None]
        return self.proj(attend(query, key, value, bias).transpose(1, 2).reshape(det.shape))


class PlainBlock(Block):
    """Norms, attention and feed-forward of both kinds of token, one after the other."""

    def forward(
        self,
        patches: Tensor,
        det: Tensor,
        det_pos: Tensor,
        patch_pos: Tensor | None,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        update = self.attn(
            self.norm1(patches),
            self.norm1(det) + self.det_pos_linear(det_pos),
            shift=self.shift,
            patch_pos=patch_pos,
            padding_mask=padding_mask,
        )
        update = self._drop(*update)
        patches, det = patches + update[0], det + update[1]
        update = self._drop(self._feed(patches), self._feed(det))
        return patches + update[0], det + update[1]

    def _feed(self, x: Tensor) -> Tensor:
        return self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


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


class PlainDecoderLayer(DecoderLayer):
    """Self-attention from the projections of ``nn.MultiheadAttention``, with its dropout of attention weights."""

    def forward(
        self,
        tokens: Tensor,
        pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        tokens = self.norm2(tokens + self._drop(self._self_attention(tokens + pos, tokens)))
        update = self.cross_attn(tokens + pos, reference, memory, shapes, padding_mask)
        tokens = self.norm1(tokens + self._drop(update))
        update = self.linear2(self._drop(F.relu(self.linear1(tokens))))
        return self.norm3(tokens + self._drop(update))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _self_attention(self, query: Tensor, value: Tensor) -> Tensor:
        batch, tokens, channels = query.shape
        weight, bias = self.self_attn.in_proj_weight, self.self_attn.in_proj_bias
        parts = []
        for x, w, b in zip((query, query, value), weight.chunk(3), bias.chunk(3)):
            x = F.linear(x, w, b).view(batch, tokens, self.self_attn.num_heads, -1)
            parts.append(x.transpose(1, 2))
        logits = parts[0] * parts[0].shape[-1] ** -0.5 @ parts[1].transpose(-2, -1)
        out = self._drop(logits.softmax(-1)) @ parts[2]
        return self.self_attn.out_proj(out.transpose(1, 2).reshape(batch, tokens, channels))


def plain_kernel(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Deformable attention level by level, as Deformable DETR's PyTorch reference writes it."""
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], *locations.shape[3:5]
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
    ReconfiguredAttention: PlainAttention,
    Block: PlainBlock,
    PatchMerging: PlainMerging,
    SwinRAM: PlainSwin,
    DecoderLayer: PlainDecoderLayer,
    MultiScaleDeformableAttention: PlainDeformableAttention,
    HungarianMatcher: PlainMatcher,
    SetCriterion: PlainCriterion,
}
