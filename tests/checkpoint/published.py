"""Models, and files as their authors publish them, with weights made from names."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from mokd_det.modeling import EPFF, DeformableTransformer, InputProjection, ViDT
from mokd_det.modeling.backbone import DET_BACKBONES
from tests.modeling import golden

NANO, NANO_PLUS = "vidt_swin_nano", "vidtplus_swin_nano_det300"


def detector(
    variant: str = "nano", *, num_classes: int = 80, plus: bool = False, num_queries: int | None = None
) -> ViDT:
    """A ViDT or ViDT+ in eval mode with random weights."""
    backbone = DET_BACKBONES.get(f"swin_{variant}")(num_det_tokens=num_queries or (300 if plus else 100))
    # published models have no output more than classes: their class 0 is no category
    token_classes = num_classes + (num_classes != 91) if plus else None
    transformer = DeformableTransformer(token_classes=token_classes)
    neck = EPFF() if plus else InputProjection()
    return ViDT(
        backbone=backbone, neck=neck, transformer=transformer, num_classes=num_classes, iou_head=plus
    ).eval()


def shapes(variant: str) -> dict[str, Tensor]:
    """A published state dict without values."""
    keys = golden.golden(f"keys_{variant}")["state_dict"]
    return {key: torch.empty(shape, device="meta") for key, shape in keys.items()}


def official_state(variant: str) -> OrderedDict[str, Tensor]:
    """A published state dict, in which the two copies of a box head are one tensor."""
    record = golden.golden(f"keys_{variant}")
    constants = detector(plus="plus" in variant).state_dict()
    state: OrderedDict[str, Tensor] = OrderedDict()
    for key, shape in record["state_dict"].items():
        if key.endswith("relative_position_index"):
            state[key] = constants[key]
        else:
            name = key.removeprefix("transformer.decoder.") if "decoder.bbox_embed" in key else key
            state[key] = torch.from_numpy(golden.weight(name, tuple(shape)))
    for name, copy in record["same_tensor"].items():
        state[name] = state[copy]
    return state


def official_content(variant: str) -> dict[str, Any]:
    """A published file: weights, and what the training left there."""
    return {
        "model": official_state(variant),
        "optimizer": {"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
        "lr_scheduler": {"base_values": [1e-4], "t_initial": 50},
        "epoch": 49,
        "args": argparse.Namespace(
            backbone_name="swin_nano", lr=1e-4, det_token_num=100, masks=False, resume=""
        ),
    }


def swin_state(model: Any, *, layout: str) -> dict[str, Tensor]:
    """timm's Swin as a state dict in its own layout or in Microsoft's."""
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    if layout == "timm":
        return state
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        renamed[".".join(parts).replace("head.fc", "head")] = value
    for name, module in model.named_modules():
        if hasattr(module, "relative_position_index"):
            renamed[f"{name}.relative_position_index"] = module.relative_position_index.clone()
    renamed["layers.2.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return renamed
