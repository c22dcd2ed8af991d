"""Where the DET tokens of a detector look: recorded beside its forward pass, by hooks that are gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mokd_det.errors import ConfigError
from mokd_det.layers import (
    MultiScaleDeformableAttention,
    ReconfiguredAttention,
    cxcywh_to_xyxy,
    det_attention_weights,
)
from mokd_det.modeling import ViDT
from mokd_det.modeling.backbone import SwinRAM, TimmRAM
from mokd_det.modeling.backbone.timm_ram import HOST_STRIDES, DetBlock

__all__ = ["CrossAttention", "DetectorAttention", "SamplingPoints", "record_detector_attention"]

_STEM_STRIDE = 4


@dataclass(frozen=True)
class CrossAttention:
    """RAM cross-attention of one block of the backbone's last stage, for one image.

    Attributes:
        weights: (heads, N, H·W + N): rows of the DET tokens, over the map's cells row by row and then over the DET
            tokens. Each adds up to 1; cells of the batch's padding have exactly 0.
        grid: (H, W).
        cell: width and height of a cell in pixels of the original image.
    """

    weights: np.ndarray
    grid: tuple[int, int]
    cell: tuple[float, float]

    def maps(self) -> np.ndarray:
        """(N, H, W), mean over the heads."""
        cells = self.grid[0] * self.grid[1]
        return self.weights.mean(0)[:, :cells].reshape(-1, *self.grid)

    def on_image(self) -> np.ndarray:
        """(N,): how much of each token's attention goes to the image and not to DET tokens."""
        return self.maps().sum((1, 2))


@dataclass(frozen=True)
class SamplingPoints:
    """What the deformable attention of one decoder layer reads, for one image.

    Attributes:
        points: (N, heads, levels, points, 2): (x, y) in pixels of the original image. Those outside the image read
            zeros.
        weights: (N, heads, levels, points), adding up to 1 for every token and head.
        strides: of the levels, in pixels of the model's input.
    """

    points: np.ndarray
    weights: np.ndarray
    strides: tuple[int, ...]


@dataclass(frozen=True)
class DetectorAttention:
    """One image: what every DET token predicts, and where it looks for it.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the original image.
        classes: (N,) most probable class.
        scores: (N,) its probability.
        cross: the blocks of the backbone's last stage, in their order (of others than ViDT: what attends to the image).
        sampling: the decoder's layers, in their order.
        cross_name: what ``cross`` is.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    cross: tuple[CrossAttention, ...]
    sampling: tuple[SamplingPoints, ...]
    cross_name: str = "RAM attention"


@torch.no_grad()
def record_detector_attention(
    model: nn.Module, batched_inputs: Sequence[dict[str, Any]]
) -> list[DetectorAttention]:
    """Run a detector in inference and keep the attention of its DET tokens.

    The model computes what it always does; the weights are computed beside it, from the inputs of its attention layers.

    Args:
        model: a :class:`mokd_det.modeling.ViDT` in eval mode whose backbone is a
            :class:`~mokd_det.modeling.backbone.SwinRAM` or :class:`~mokd_det.modeling.backbone.TimmRAM`.
        batched_inputs: Detectron2's batch: ``image``, and ``height`` and ``width`` of the original image.

    Raises:
        ConfigError: another model.
    """
    if not isinstance(model, ViDT):
        raise ConfigError(
            f"{type(model).__name__} has no DET tokens whose attention could be drawn; a ViDT or a detector of "
            "transformers is needed (or, for classification, a timm ViT or DeiT)"
        )
    if model.training:
        raise ValueError("the model must be in eval mode")
    with _recording(model) as records:
        model(batched_inputs)
    sizes = [tuple(item["image"].shape[-2:]) for item in batched_inputs]
    return [
        _of_image(records, i, size, (item.get("height", size[0]), item.get("width", size[1])))
        for i, (item, size) in enumerate(zip(batched_inputs, sizes, strict=True))
    ]


@dataclass
class _Records:
    """What the hooks of one forward pass leave, for the whole batch."""

    cross: list[tuple[Tensor, tuple[int, int], int]] = field(default_factory=list)
    sampling: list[tuple[Tensor, Tensor, list[tuple[int, int]]]] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    boxes: Tensor = field(default_factory=lambda: torch.empty(0))
    strides: tuple[int, ...] = ()


@contextmanager
def _recording(model: ViDT) -> Iterator[_Records]:
    records = _Records(strides=tuple(model.neck.strides))
    with ExitStack() as hooks:
        for module, stride in _cross_attentions(model.backbone):
            read = _read_ram if isinstance(module, ReconfiguredAttention) else _read_det_block

            def keep(
                module: nn.Module, args: tuple, kwargs: dict, read: Any = read, stride: int = stride
            ) -> None:
                found = read(module, args, kwargs)
                if found is not None:
                    records.cross.append((*found, stride))

            hooks.enter_context(module.register_forward_pre_hook(keep, with_kwargs=True))
        for layer in model.transformer.decoder.layers:
            hooks.enter_context(
                layer.cross_attn.register_forward_pre_hook(
                    lambda module, args: records.sampling.append(_read_sampling(module, *args))
                )
            )
        for name in ("logits", "boxes"):
            hooks.enter_context(
                model.taps[name].register_forward_hook(
                    lambda module, args, output, name=name: setattr(records, name, output.float().cpu())
                )
            )
        yield records


def _cross_attentions(backbone: nn.Module) -> list[tuple[nn.Module, int]]:
    """The modules in which DET tokens may see the image, with the stride of what they see."""
    if isinstance(backbone, SwinRAM):
        stages = enumerate(backbone.layers)
        return [(block.attn, _STEM_STRIDE * 2**i) for i, stage in stages for block in stage.blocks]
    if isinstance(backbone, TimmRAM):
        return [(block, s) for stage, s in zip(backbone.stages, HOST_STRIDES) for block in stage.blocks]
    raise ConfigError(
        f"the attention of the backbone {type(backbone).__name__} cannot be drawn; SwinRAM's and TimmRAM's can"
    )


def _read_ram(
    module: ReconfiguredAttention, args: tuple[Tensor, Tensor], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[int, int]] | None:
    patches, det = args
    if kwargs.get("patch_pos") is None:
        return None
    keys = patches + kwargs["patch_pos"].to(patches.dtype)
    weights = det_attention_weights(module.qkv, module.num_heads, det, keys, kwargs["padding_mask"])
    return weights.float().cpu(), tuple(patches.shape[1:3])


def _read_det_block(
    module: DetBlock, args: tuple[Tensor, Tensor, Tensor | None, Tensor], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[int, int]] | None:
    det, det_pos, patches, mask = args
    if patches is None:
        return None
    query = module.norm1(det) + module.det_pos_linear(det_pos)
    weights = det_attention_weights(module.qkv, module.num_heads, query, patches, mask)
    return weights.float().cpu(), tuple(patches.shape[1:3])


def _read_sampling(
    module: MultiScaleDeformableAttention,
    query: Tensor,
    reference: Tensor,
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    padding_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    locations, weights = module.sampling(query, reference, shapes)
    return locations.float().cpu(), weights.float().cpu(), [(height, width) for height, width in shapes]


def _of_image(
    records: _Records, index: int, input_size: tuple[int, int], original_size: tuple[int, int]
) -> DetectorAttention:
    """The image number ``index`` of the batch; sizes are (height, width)."""
    scale = np.array([original_size[1] / input_size[1], original_size[0] / input_size[0]])  # x, y
    scores, classes = records.logits[index].sigmoid().max(-1)
    boxes = cxcywh_to_xyxy(records.boxes[index]).numpy().astype(np.float64)
    # Where a backbone lets the tokens see the image in several stages, the last one is drawn.
    last = records.cross[-1][2] if records.cross else None
    cross = tuple(
        CrossAttention(weights[index].numpy().astype(np.float64), grid, tuple((stride * scale).tolist()))
        for weights, grid, stride in records.cross
        if stride == last
    )
    sampling = []
    for locations, weights, shapes in records.sampling:
        pixels = [(width * s, height * s) for (height, width), s in zip(shapes, records.strides, strict=True)]
        points = locations[index].numpy().astype(np.float64) * np.array(pixels)[:, None, :] * scale
        sampling.append(SamplingPoints(points, weights[index].numpy().astype(np.float64), records.strides))
    return DetectorAttention(
        boxes * np.array([original_size[1], original_size[0]] * 2),
        classes.numpy(),
        scores.numpy().astype(np.float64),
        cross,
        tuple(sampling),
    )
