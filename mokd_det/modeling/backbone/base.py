"""What ViDT expects of a backbone, and the registry through which a config can name one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from detectron2.utils.registry import Registry
from torch import Tensor, nn

__all__ = ["DET_BACKBONES", "DetBackbone", "DetFeatures", "register_backbone"]

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
