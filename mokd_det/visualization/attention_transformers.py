"""Where the queries of Hugging Face's detectors look: their attention to the image, or the points that they sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mokd_det.errors import ConfigError
from mokd_det.layers import cxcywh_to_xyxy
from mokd_det.modeling import TransformersDetector
from mokd_det.visualization.attention_detector import CrossAttention, DetectorAttention, SamplingPoints

__all__ = ["record_transformers_attention"]


@torch.no_grad()
def record_transformers_attention(
    model: TransformersDetector, batched_inputs: Sequence[dict[str, Any]]
) -> list[DetectorAttention]:
    """Run a detector in inference and keep where its queries look.

    DETR's relatives attend to every cell of one map, YOLOS's detection tokens to every patch: their weights are asked
    of transformers (``output_attentions``, plain attention for this one run). All others sample points: those that
    their decoder's attention reads (``grid_sample``), with the weights that it returns.

    The inputs are Detectron2's batch. Of families that sample, ``cross`` is empty, of the others ``sampling``.

    Raises:
        ConfigError: a decoder whose points are rounded to cells (``decoder_method="discrete"``).
    """
    if model.training:
        raise ValueError("the model must be in eval mode")
    detector = model.detector
    records: list[tuple[list[Tensor], Tensor]] = []
    if model.family.style in ("detr", "yolos"):
        with _plain_attention(detector):
            seen = model.inspect(batched_inputs, output_attentions=True)
    else:
        if getattr(detector.config, "decoder_method", "default") != "default":
            raise ConfigError(
                f"{type(detector).__name__} with decoder_method='{detector.config.decoder_method}' rounds its sampling "
                "points to cells; those of decoder_method='default' can be drawn"
            )
        with _sampled(detector.get_submodule("model.decoder"), records):
            seen = model.inspect(batched_inputs)
    found = []
    for index, (item, (height, width)) in enumerate(zip(batched_inputs, seen.sizes, strict=True)):
        given = item["image"].shape
        original = int(item.get("height", given[-2])), int(item.get("width", given[-1]))
        scale = np.array([original[1] / width, original[0] / height])  # (x, y)
        canvas = np.array([seen.canvas[1], seen.canvas[0]]) * scale
        scores, classes = seen.logits[index].float().sigmoid().cpu().max(-1)
        boxes = cxcywh_to_xyxy(seen.boxes[index].float().cpu()).double().numpy() * np.array(
            original[::-1] * 2
        )
        found.append(
            DetectorAttention(
                boxes,
                classes.numpy(),
                scores.double().numpy(),
                tuple(
                    CrossAttention(_array(weights[index]), grid, tuple((stride * scale).tolist()))
                    for weights, grid, stride in _cross(model, seen.output, seen.canvas)
                ),
                tuple(
                    _points(grids, weights, index, canvas, model.taps["patch"].spec.strides)
                    for grids, weights in records
                ),
                "attention",
            )
        )
    return found


def _cross(
    model: TransformersDetector, output: Any, canvas: tuple[int, int]
) -> list[tuple[Tensor, tuple[int, int], int]]:
    """Per layer the weights (B, heads, N, cells and what is none) of the queries, the map's (H, W) and its stride."""
    if model.family.style == "detr":
        layers = list(output.cross_attentions)
    elif model.family.style == "yolos":
        # tokens: class token, patches, detection tokens; the class token comes last here
        rows = [weights[:, :, -model.num_queries :] for weights in output.attentions]
        layers = [torch.cat((row[..., 1:], row[..., :1]), -1) for row in rows]
    else:
        return []
    (stride,) = model.taps["patch"].spec.strides
    return [(weights, (-(-canvas[0] // stride), -(-canvas[1] // stride)), stride) for weights in layers]


def _points(
    grids: Sequence[Tensor], weights: Tensor, index: int, canvas: np.ndarray, strides: Sequence[int]
) -> SamplingPoints:
    """Of one image and layer; levels with fewer points than others repeat one with weight 0."""
    counts = [grid.shape[2] for grid in grids]
    heads = weights.shape[2]
    shares = weights.flatten(3).split(counts, -1)  # (B, N, heads, points) of each level
    points = np.zeros((weights.shape[1], heads, len(grids), max(counts), 2))
    kept = np.zeros(points.shape[:-1])
    for level, (grid, share, count) in enumerate(zip(grids, shares, counts, strict=True)):
        # (N, heads, points, 2) in -1..1
        located = _array(grid.unflatten(0, (-1, heads))[index].transpose(0, 1))
        points[:, :, level] = located[:, :, :1]
        points[:, :, level, :count] = located
        kept[:, :, level, :count] = _array(share[index])
    return SamplingPoints((points + 1) / 2 * canvas, kept, tuple(strides))


class _Grids(TorchFunctionMode):
    """Keeps the grids (B · heads, N, points, 2) that ``grid_sample`` is given."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.grid_sample:
            self.grids.append(args[1])
        return function(*args, **(kwargs or {}))


@contextmanager
def _sampled(decoder: nn.Module, records: list[tuple[list[Tensor], Tensor]]) -> Iterator[None]:
    """Appends the grids of all levels and the weights (B, N, heads, …) of each layer's attention to the image."""
    mode = _Grids()

    def begin(module: nn.Module, inputs: Any) -> None:
        mode.grids = []  # without the encoder's

    def keep(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        records.append((mode.grids, output[1]))

    with ExitStack() as hooks, mode:
        for module in decoder.modules():
            if type(module).__name__.endswith("MultiscaleDeformableAttention"):
                hooks.enter_context(module.register_forward_pre_hook(begin))
                hooks.enter_context(module.register_forward_hook(keep))
        yield


@contextmanager
def _plain_attention(detector: nn.Module) -> Iterator[None]:
    """The attention that knows its weights; a fused one never has them."""
    # A configuration hands its choice down to those of its parts, so the whole's stands before them.
    configs = {id(m.config): m.config for m in detector.modules() if hasattr(m, "config")}.values()
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy().astype(np.float64)
