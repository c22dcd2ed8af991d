"""Tap points: named places of a model whose values a distillation method may read.

A tap point is an identity module, so recording it is an ordinary forward hook, exactly as for any other module of a
model that nobody prepared for distillation; it only adds the static description that lets shapes be compared before
training starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

__all__ = ["FeatureMap", "TapKind", "TapPoint", "TapSpec"]

TapKind = Literal["maps", "tokens", "vectors"]


@dataclass(frozen=True)
class FeatureMap:
    """One level of patch tokens.

    Attributes:
        tensor: features, (B, C, H, W).
        padding_mask: (B, H, W) bool, True where the level shows batch padding; None: no padding.
        stride: pixels of the input per cell.
        stretched: whether the model resized the batch's images itself, so that its pixels are not theirs.
    """

    tensor: Tensor
    padding_mask: Tensor | None
    stride: int
    stretched: bool = False


@dataclass(frozen=True)
class TapSpec:
    """What a tap delivers, known without running the model.

    Attributes:
        kind: "maps": a list of :class:`FeatureMap`, one per entry of ``strides`` and in that order;
            "tokens": a tensor (B, N, C), or (L, B, N, C) when ``num_levels`` = L > 1; "vectors": a tensor (B, C).
        channels: C, one number per map (per stride), or a single one for tokens and vectors.
        strides: strides of the maps; empty for the other kinds.
        num_tokens: N, for tokens.
        num_levels: L, for a stack of token sets (the decoder levels); 1: no stack dimension.
    """

    kind: TapKind
    channels: tuple[int, ...]
    strides: tuple[int, ...] = ()
    num_tokens: int | None = None
    num_levels: int = 1

    def __post_init__(self) -> None:
        if self.kind == "maps" and len(self.channels) != len(self.strides):
            raise ValueError(f"one channel count per stride: {self.channels} against strides {self.strides}")
        if self.kind != "maps" and len(self.channels) != 1:
            raise ValueError(f"{self.kind} have one channel count, not {self.channels}")
        if self.kind == "vectors" and (self.num_tokens is not None or self.num_levels != 1):
            raise ValueError("vectors are one per image: num_tokens and num_levels are for tokens")


class TapPoint(nn.Module):
    """Identity that marks a tap and carries its :class:`TapSpec`; without a hook it costs one Python call."""

    def __init__(self, spec: TapSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def is_read(self) -> bool:
        """Whether a hook listens: what serves this tap alone need not be computed or kept otherwise."""
        return bool(self._forward_hooks or self._forward_pre_hooks)

    def forward(self, value: Tensor | list[FeatureMap]) -> Tensor | list[FeatureMap]:
        return value

    def extra_repr(self) -> str:
        return str(self.spec)
