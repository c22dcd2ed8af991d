"""Weights, inputs and stored positions of the goldens, all made from names (the rule of the reference fixtures)."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mokd_det.modeling import (
    EPFF,
    DeformableTransformer,
    HungarianMatcher,
    InputProjection,
    SetCriterion,
    ViDT,
)
from mokd_det.modeling.backbone import DET_BACKBONES
from mokd_det.modeling.targets import Targets

FOLDER = Path(__file__).parent.parent / "data" / "vidt"


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers that depend on the name and the shape alone."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(shape).astype(np.float32)


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value of one state_dict entry."""
    values = noise(key, shape)
    if key.endswith("bias"):
        return values * np.float32(0.02) - np.float32(3 * ("class_embed" in key or "token_embed" in key))
    if key.endswith("weight"):
        if len(shape) == 1:
            return 1 + values * np.float32(0.1)
        return values * np.float32(np.prod(shape[1:]) ** -0.5)
    return values


def fill(model: nn.Module) -> nn.Module:
    """Give every tensor of the model the weights of its name; integer buffers stay as built."""
    state = {
        key: value if not value.is_floating_point() else torch.from_numpy(weight(key, tuple(value.shape)))
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def stored(name: str, tensor: Tensor, count: int = 256) -> np.ndarray:
    """The numbers of a tensor that a golden keeps."""
    flat = tensor.detach().flatten().numpy()
    if flat.size <= count:
        return flat
    index = (np.arange(count, dtype=np.uint64) * 2654435761 + zlib.crc32(name.encode())).astype(
        np.int64
    ) % flat.size
    return flat[index]


@cache
def golden(variant: str) -> dict:
    """The JSON part of a golden, or of the key list ``keys_…``."""
    return json.loads((FOLDER / f"{variant}.json").read_text())


def build(variant: str, *, filled: bool = True) -> ViDT:
    """The detector of a golden in float32 and eval mode, with its weights unless ``filled`` is off."""
    plus = variant.startswith("vidtplus")
    name = {"base": "swin_base"}.get(variant.split("_")[2], f"swin_{variant.split('_')[2]}")
    backbone = DET_BACKBONES.get(name)(num_det_tokens=300 if plus else 100)
    weights = {"ce": 2.0, "bbox": 5.0, "giou": 2.0}
    if plus:
        weights |= {"iouaware": 2.0, "token_focal": 2.0, "token_dice": 2.0}
    model = ViDT(
        backbone=backbone,
        neck=EPFF() if plus else InputProjection(),
        transformer=DeformableTransformer(token_classes=91 if plus else None),
        num_classes=91,
        iou_head=plus,
        criterion=SetCriterion(num_classes=91, matcher=HungarianMatcher(), weights=weights),
    )
    return (fill(model) if filled else model).eval()


def images(case: dict, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Padded batch and padding mask of a case."""
    batch, _, height, width = case["batch_shape"]
    tensor = torch.zeros(batch, 3, height, width, dtype=dtype)
    mask = torch.ones(batch, height, width, dtype=torch.bool)
    for i, (name, shape) in enumerate(zip(case["image_names"], case["images"])):
        tensor[i, :, : shape[1], : shape[2]] = torch.from_numpy(noise(name, tuple(shape))).to(dtype)
        mask[i, : shape[1], : shape[2]] = False
    return tensor, mask


def targets(rows: list[dict], dtype: torch.dtype, case: dict | None = None) -> Targets:
    """Targets of a golden; with its ``case`` also the masks, which are the filled boxes of each unpadded image."""
    labels = [torch.tensor(row["labels"], dtype=torch.int64) for row in rows]
    boxes = [torch.tensor(row["boxes"], dtype=torch.float64).reshape(-1, 4) for row in rows]
    masks = None
    if case is not None:
        canvas = tuple(case["batch_shape"][-2:])
        masks = [box_masks(box, image[1:], canvas) for box, image in zip(boxes, case["images"])]
    return Targets(torch.cat(labels), torch.cat(boxes).to(dtype), tuple(map(len, labels)), (), masks)


def box_masks(boxes: Tensor, size: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    """Rectangles of boxes relative to an image of ``size``, on the padded canvas, (objects, H, W) bool."""
    height, width = size
    masks = torch.zeros(len(boxes), *canvas, dtype=torch.bool)
    for mask, (cx, cy, w, h) in zip(masks, boxes.tolist()):
        rows = slice(int((cy - h / 2) * height), int((cy + h / 2) * height))
        mask[rows, int((cx - w / 2) * width) : int((cx + w / 2) * width)] = True
    return masks
