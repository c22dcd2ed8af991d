"""What ViDT expects of a backbone, and the registry through which a config can name one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from mokd_det.errors import ConfigError

__all__ = [
    "DET_BACKBONES",
    "DetBackbone",
    "DetFeatures",
    "check_declaration",
    "check_output",
    "register_backbone",
    "resize_mask",
]

DET_BACKBONES = Registry("DET_BACKBONE")
DET_BACKBONES.__doc__ = (
    "Backbones with DET tokens by name: classes or functions that return a :class:`DetBackbone`."
)

Built = TypeVar("Built", bound=Callable[..., "DetBackbone"])


def register_backbone(name: str) -> Callable[[Built], Built]:
    """Decorator that registers a class or builder function of a :class:`DetBackbone` under ``name``."""

    def add(builder: Built) -> Built:
        DET_BACKBONES._do_register(name, builder)
        return builder

    return add


@dataclass(frozen=True)
class DetFeatures:
    """Output of a backbone with DET tokens.

    Attributes:
        patch_features: one map (B, C_l, H_l, W_l) per stride of the backbone, in the order of its ``strides``.
        det_tokens: final DET tokens, (B, N, det_channels).
        det_pos: their position embedding, (1, N, pos_channels).
    """

    patch_features: list[Tensor]
    det_tokens: Tensor
    det_pos: Tensor


class DetBackbone(nn.Module, ABC):
    """Base of every backbone that ViDT can use.

    Attributes:
        strides: pixels per cell of each patch feature, e.g. (8, 16, 32, 64).
        channels: channels of each patch feature.
        num_det_tokens: N.
        det_channels: channels of the final DET tokens.
        pos_channels: channels of their position embedding.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    num_det_tokens: int
    det_channels: int
    pos_channels: int

    @abstractmethod
    def forward(self, images: Tensor, padding_mask: Tensor) -> DetFeatures:
        """Encode a batch.

        Args:
            images: (B, 3, H, W), normalised, zero on padding.
            padding_mask: (B, H, W) bool, True on padding.
        """


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of a (B, H, W) bool mask, by floor(i · in / out) as ViDT does everywhere."""
    height, width = mask.shape[-2:]
    rows = _nearest_cells(height, size[0], mask.device)
    columns = _nearest_cells(width, size[1], mask.device)
    return mask.index_select(1, rows).index_select(2, columns)


def _nearest_cells(length: int, cells: int, device: torch.device) -> Tensor:
    """The source of each of ``cells`` cells; float32 throughout, as ``F.interpolate`` rounds.

    Written out, because exported graphs would leave the rounding to each runtime's own resize operator.
    """
    # Two tensors, because CUDA divides by a number through its reciprocal, which rounds twice.
    source, target = (torch.full((), n, dtype=torch.float32, device=device) for n in (length, cells))
    index = torch.arange(cells, dtype=torch.float32, device=device) * (source / target)
    return index.floor().long().clamp(max=length - 1)


def check_declaration(backbone: nn.Module) -> None:
    """Refuse a backbone that is no :class:`DetBackbone` or does not say what it delivers (ConfigError)."""
    name = type(backbone).__name__
    if not isinstance(backbone, DetBackbone):
        raise ConfigError(
            f"the backbone {name} is no DetBackbone: derive it from mokd_det.modeling.backbone.DetBackbone"
        )
    wanted = ("strides", "channels", "num_det_tokens", "det_channels", "pos_channels")
    missing = [attribute for attribute in wanted if not hasattr(backbone, attribute)]
    if missing:
        raise ConfigError(f"the backbone {name} does not declare {', '.join(missing)}")
    if len(backbone.strides) != len(backbone.channels):
        raise ConfigError(
            f"the backbone {name} declares {len(backbone.strides)} strides {tuple(backbone.strides)} but "
            f"{len(backbone.channels)} channel counts {tuple(backbone.channels)}"
        )


def check_output(backbone: DetBackbone, features: DetFeatures, images: Tensor) -> None:
    """Refuse an output for images (B, 3, H, W) that contradicts what the backbone declares.

    A map of stride s must have H/s by W/s cells, rounded down or up: cells beyond the image (of a backbone that pads
    its input, say) would shift every box.

    Raises:
        ConfigError: names what was declared and what came.
    """
    batch, _, height, width = images.shape
    name, found = type(backbone).__name__, [tuple(level.shape) for level in features.patch_features]
    declared = [f"(B, {c}, H/{s}, W/{s})" for c, s in zip(backbone.channels, backbone.strides)]

    def fits(shape: tuple[int, ...], channels: int, stride: int) -> bool:
        sides = zip((height, width), shape[2:])
        cells_fit = all(max(side // stride, 1) <= cells <= -(-side // stride) for side, cells in sides)
        return len(shape) == 4 and shape[:2] == (batch, channels) and cells_fit

    if len(found) != len(declared) or not all(map(fits, found, backbone.channels, backbone.strides)):
        raise ConfigError(
            f"the backbone {name} declares the maps {', '.join(declared)}, but for images of shape "
            f"{tuple(images.shape)} it gave {', '.join(map(str, found)) or 'none'}"
        )
    tokens = {
        "det_tokens": (batch, backbone.num_det_tokens, backbone.det_channels),
        "det_pos": (1, backbone.num_det_tokens, backbone.pos_channels),
    }
    for attribute, expected in tokens.items():
        shape = tuple(getattr(features, attribute).shape)
        if shape != expected:
            raise ConfigError(
                f"the backbone {name} declares {attribute} of shape {expected} for a batch of {batch}, but gave {shape}"
            )
