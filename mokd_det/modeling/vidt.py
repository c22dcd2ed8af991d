"""ViDT (Song et al., ICLR 2022) as a Detectron2 meta-architecture."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn

from mokd_det.contract import TrainingTask
from mokd_det.errors import ConfigError
from mokd_det.layers import MLP, FeatureMap, TapPoint, TapSpec, xyxy_to_cxcywh

from .backbone.base import DetBackbone, check_declaration, check_output, resize_mask
from .criterion import SetCriterion
from .decoder import DeformableTransformer
from .neck import EPFF, InputProjection, projection
from .postprocess import as_instances, original_sizes, top_predictions
from .query_decoder import Queries, QueryDecoder
from .targets import Targets

__all__ = ["ViDT", "ViDTOutput"]

_PARAMETER_PARTS = {
    "backbone": ("backbone.*",),
    "neck": ("input_proj.*", "fusion.*", "tgt_proj.*", "query_pos_proj.*", "transformer.*"),
    "head": ("class_embed.*", "bbox_embed.*", "iou_embed.*"),
}


@dataclass(frozen=True)
class ViDTOutput:
    """Predictions of every decoder level; the last one is the detector's.

    Attributes:
        logits: (L+1, B, N, classes).
        boxes: (L+1, B, N, 4), cxcywh in [0, 1] of the unpadded image.
        iou_logits: (L+1, B, N, 1), or None without an IoU head.
        token_logits: per feature level (B, H, W, classes), or None without a token classifier.
    """

    logits: Tensor
    boxes: Tensor
    iou_logits: Tensor | None = None
    token_logits: list[Tensor] | None = None


@META_ARCH_REGISTRY.register()
class ViDT(TrainingTask):
    """Detector whose backbone carries the DET tokens and whose neck is a decoder without an encoder.

    Parameter names are those of the published checkpoints. Tap points (``taps.*``), in MoKD's names: ``patch``, the
    projected feature levels; ``neck``, the projected DET tokens that enter the decoder; ``head``, the DET tokens of
    every decoder level, the input included; ``head_logits`` and ``head_boxes``, what each of these levels predicts;
    ``logits`` and ``boxes``, what the last one does.

    Args:
        backbone: any backbone with DET tokens.
        neck: from the backbone's features to d channels, not set up yet; its ``strides`` give the order of its output,
            its ``norm_groups`` hold for the DET tokens' projections too.
        transformer: the decoder.
        num_classes: contiguous classes.
        criterion: losses; None: inference only.
        iou_head: predict the IoU of each box too (ViDT+).
        pixel_mean, pixel_std: normalisation of RGB pixels in 0..255.
        topk: detections kept per image.
    """

    def __init__(
        self,
        *,
        backbone: DetBackbone,
        neck: InputProjection | EPFF,
        transformer: DeformableTransformer,
        num_classes: int,
        criterion: SetCriterion | None = None,
        iou_head: bool = False,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        topk: int = 100,
    ) -> None:
        super().__init__()
        dim, levels = transformer.embed_dim, transformer.num_layers + 1
        if criterion is not None and criterion.num_classes != num_classes:
            raise ValueError(f"the model has {num_classes} classes, its criterion {criterion.num_classes}")
        check_declaration(backbone)
        if len(backbone.strides) != transformer.num_levels:
            raise ConfigError(
                f"the backbone {type(backbone).__name__} delivers {len(backbone.strides)} levels (strides "
                f"{tuple(backbone.strides)}), but transformer.num_levels is {transformer.num_levels}"
            )
        self.num_classes, self.num_queries, self.topk = num_classes, backbone.num_det_tokens, topk
        self.transformer = transformer
        class_head = nn.Linear(dim, num_classes)
        nn.init.constant_(class_head.bias, -math.log(99.0))  # every class starts at probability 0.01
        box_head = MLP(dim, dim, 4, 3)
        nn.init.zeros_(box_head.layers[-1].weight)
        nn.init.zeros_(box_head.layers[-1].bias)
        self.class_embed = nn.ModuleList(copy.deepcopy(class_head) for _ in range(levels))
        self.bbox_embed = nn.ModuleList(copy.deepcopy(box_head) for _ in range(levels))
        nn.init.constant_(self.bbox_embed[0].layers[-1].bias[2:], -2.0)  # the first boxes start small
        self.iou_embed = None
        if iou_head:
            iou_mlp = MLP(dim, dim, 1, 3)
            self.iou_embed = nn.ModuleList(copy.deepcopy(iou_mlp) for _ in range(levels))
        self.backbone = backbone
        self._backbone_checked = False
        neck.setup(backbone.channels, backbone.strides, dim)
        self._neck_name = neck.published_name
        self.add_module(self._neck_name, neck)
        self.tgt_proj = projection(backbone.det_channels, dim, neck.norm_groups)
        self.query_pos_proj = projection(backbone.pos_channels, dim, neck.norm_groups)
        self.criterion = criterion
        self.taps = nn.ModuleDict(
            {"patch": TapPoint(TapSpec("maps", (dim,) * len(neck.strides), tuple(neck.strides)))}
        )
        for one, every, channels in (
            ("neck", "head", dim),
            ("logits", "head_logits", num_classes),
            ("boxes", "head_boxes", 4),
        ):
            spec = TapSpec("tokens", (channels,), num_tokens=self.num_queries)
            self.taps[one], self.taps[every] = TapPoint(spec), TapPoint(replace(spec, num_levels=levels))
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def neck(self) -> nn.Module:
        """The module between backbone and decoder."""
        return self.get_submodule(self._neck_name)

    def parameter_parts(self) -> Mapping[str, Sequence[str]]:
        """Backbone, neck (with the decoder) and head (the predictors)."""
        return _PARAMETER_PARTS

    # --- tensors in, tensors out -------------------------------------------------------------------------------

    def forward_tensors(
        self, images: Tensor, padding_mask: Tensor, *, label_tokens: bool = False
    ) -> ViDTOutput:
        """Predict from normalised images.

        Args:
            images: (B, 3, H, W), normalised, zero on padding.
            padding_mask: (B, H, W) bool, True on padding (right and bottom).
            label_tokens: classify the patch tokens too, if the model has a head for it (its loss alone needs them).
        """
        features = self.backbone(images, padding_mask)
        # not while compiling: the flag would become a guard, and its change a second compilation
        if not self._backbone_checked and not torch.compiler.is_compiling():
            check_output(self.backbone, features, images)
            self._backbone_checked = True
        maps = self.neck(features.patch_features)
        masks = [resize_mask(padding_mask, tuple(m.shape[-2:])) for m in maps]
        levels = [FeatureMap(m, mask, stride) for m, mask, stride in zip(maps, masks, self.neck.strides)]
        maps = [level.tensor for level in self.taps["patch"](levels)]
        tokens = self.tgt_proj(features.det_tokens.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
        tokens = self.taps["neck"](tokens)
        pos = self.query_pos_proj(features.det_pos.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
        pos = pos.expand(images.shape[0], -1, -1)
        memory = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        shapes = [tuple(m.shape[-2:]) for m in maps]
        # float32 whatever the model's type: they are ratios of counts, rounded so by the published model
        ratios = torch.stack([_valid_ratio(mask) for mask in masks], 1).to(memory.dtype)
        padding = torch.cat([m.flatten(1) for m in masks], 1)
        decoded = self.transformer(
            tokens, pos, memory, shapes, padding if _may_pad(padding) else None, ratios, self.bbox_embed
        )
        states = self.taps["head"](decoded.states)
        logits = torch.stack([head(state) for head, state in zip(self.class_embed, states)])
        self.taps["head_logits"](logits)
        self.taps["logits"](logits[-1])
        self.taps["boxes"](decoded.boxes[-1])
        self.taps["head_boxes"](decoded.boxes)
        iou_logits = token_logits = None
        if self.iou_embed is not None:
            iou_logits = torch.stack([head(state) for head, state in zip(self.iou_embed, states)])
        if label_tokens and self.transformer.token_classes is not None:
            token_logits = self.transformer.classify_patches(maps, masks)
        return ViDTOutput(logits, decoded.boxes, iou_logits, token_logits)

    def query_decoder(self) -> QueryDecoder:
        """For running the decoder with other queries (:class:`~mokd_det.modeling.query_decoder.QueryDecoder`)."""
        return _ViDTDecoder(self)

    # --- Detectron2's formats ----------------------------------------------------------------------------------

    def preprocess(self, batched_inputs: Sequence[dict]) -> tuple[Tensor, Tensor]:
        """Normalise and pad ``image`` (3, H, W), RGB in 0..255, to one batch and its padding mask.

        Returns:
            images (B, 3, H_max, W_max) and mask (B, H_max, W_max), True on padding.
        """
        sizes = [tuple(item["image"].shape[-2:]) for item in batched_inputs]
        height, width = (max(side) for side in zip(*sizes))
        images = self.pixel_mean.new_zeros(len(sizes), 3, height, width)
        padding = torch.ones(len(sizes), height, width, dtype=torch.bool)
        for i, (item, (h, w)) in enumerate(zip(batched_inputs, sizes)):
            image = item["image"].to(self.device, non_blocking=True)
            images[i, :, :h, :w] = (image - self.pixel_mean) / self.pixel_std
            padding[i, :h, :w] = False
        return images, padding.to(self.device, non_blocking=True)

    def targets(self, batched_inputs: Sequence[dict], canvas: tuple[int, int]) -> Targets:
        """Ground truth of the batch; boxes become relative to each unpadded image."""
        labels, boxes, masks = [], [], []
        for item in batched_inputs:
            instances = item["instances"]
            height, width = instances.image_size
            labels.append(instances.gt_classes)
            scale = instances.gt_boxes.tensor.new_tensor([width, height, width, height])
            boxes.append(xyxy_to_cxcywh(instances.gt_boxes.tensor) / scale)
            if self.criterion is not None and self.criterion.needs_masks:
                bits = instances.gt_masks.tensor
                padding = (0, canvas[1] - bits.shape[-1], 0, canvas[0] - bits.shape[-2])
                masks.append(F.pad(bits, padding).to(self.device))
        return Targets(
            labels=torch.cat(labels).to(self.device, torch.int64, non_blocking=True),
            boxes=torch.cat(boxes).to(self.device, non_blocking=True),
            counts=tuple(len(x) for x in labels),
            names=tuple(str(x.get("file_name", x.get("image_id", i))) for i, x in enumerate(batched_inputs)),
            masks=masks or None,
        )

    def forward(self, batched_inputs: Sequence[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Detectron2's interface.

        Args:
            batched_inputs: dicts with ``image`` (3, H, W) RGB 0..255; in training ``instances`` with ``gt_boxes`` and
                ``gt_classes``; in inference optionally ``height`` and ``width`` of the original image.

        Returns:
            Training: weighted losses by name, whose sum is ViDT's loss. Inference: one dict per image with
            ``instances`` (``pred_boxes``, ``scores``, ``pred_classes``).
        """
        images, padding_mask = self.preprocess(batched_inputs)
        output = self.forward_tensors(images, padding_mask, label_tokens=self.training)
        if self.training:
            if self.criterion is None:
                raise ValueError("this ViDT was built without a criterion and cannot be trained")
            targets = self.targets(batched_inputs, images.shape[-2:])
            with torch.autocast(device_type=images.device.type, enabled=False):
                losses = self.criterion(
                    output.logits,
                    output.boxes,
                    targets,
                    iou_logits=output.iou_logits,
                    token_logits=output.token_logits,
                )
            return self.criterion.weighted(losses)
        return self.postprocess(output, batched_inputs)

    def postprocess(self, output: ViDTOutput, batched_inputs: Sequence[dict]) -> list[dict[str, Instances]]:
        """Best detections of the last level in pixels of each original image."""
        sizes = original_sizes(batched_inputs)
        on_device = torch.tensor(sizes).to(self.device, non_blocking=True)
        logits, boxes = output.logits[-1].float(), output.boxes[-1].float()
        return as_instances(sizes, *top_predictions(logits, boxes, on_device, self.topk))


class _ViDTDecoder(QueryDecoder):
    """References are points; of a box the centre counts."""

    def __init__(self, model: ViDT) -> None:
        super().__init__(model.transformer, model.transformer.embed_dim, takes_position=True)
        self._model = model

    @property
    def queries(self) -> Queries:
        tokens, pos = self.recorded[0][:2]
        return Queries(tokens, self._model.transformer.initial_reference(pos).sigmoid(), pos)

    def __call__(self, queries: Queries) -> tuple[Tensor, Tensor]:
        rest = self.recorded[0][2:]
        decoded = self._model.transformer(
            queries.content, queries.position, *rest, reference=queries.reference[..., :2]
        )
        heads = zip(self._model.class_embed, decoded.states, strict=True)
        return torch.stack([head(state) for head, state in heads]), decoded.boxes


def _may_pad(mask: Tensor) -> bool:
    """False where a mask is known to be empty: a look at it, which a CPU alone gives away for nothing."""
    if mask.device.type != "cpu" or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return True
    return bool(mask.any())


def _valid_ratio(mask: Tensor) -> Tensor:
    """Unpadded share of the first row and column, (B, H, W) -> (B, 2) as (width, height), float32."""
    height, width = mask.shape[1:]
    ratio_h = (~mask[:, :, 0]).sum(1).float() / height
    ratio_w = (~mask[:, 0, :]).sum(1).float() / width
    return torch.stack((ratio_w, ratio_h), -1)
