"""Swin Transformer with the reconfigured attention module (RAM) of ViDT (Song et al., ICLR 2022, section 3.1).

DET tokens travel with the patch tokens through every block. Parameter names are those of the published
checkpoints, of which some tensors never reach the output (``norm1..3``, ``downsample.expansion`` and ``norm2``): they
are kept, frozen, so that those checkpoints load exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.layers import ReconfiguredAttention, masked_sine_encoding
from mokd_det.modeling.activation_checkpointing import checkpointed

from .base import DetBackbone, DetFeatures, register_backbone, resize_mask

__all__ = ["SwinRAM", "swin_base", "swin_nano", "swin_small", "swin_tiny"]


def _frozen(module: nn.Module) -> nn.Module:
    """A module that is carried for published checkpoints only; it never receives a gradient."""
    return module.requires_grad_(False)


class PatchEmbed(nn.Module):
    """Non-overlapping 4x4 patches: convolution and LayerNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H/4), ceil(W/4), C)."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % 4, 0, -height % 4))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class ConvStem(nn.Module):
    """Three 3x3 convolutions with BatchNorm down to stride 4: not ViDT's, but it learns sooner from few images."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths, strides = (3, dim, dim, dim), (2, 2, 1)
        layers: list[nn.Module] = []
        for i, stride in enumerate(strides):
            layers += [
                nn.Conv2d(widths[i], widths[i + 1], 3, stride, 1, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.ReLU(inplace=True),
            ]
        self.proj = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H/4), ceil(W/4), C)."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % 4, 0, -height % 4))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


STEMS: dict[str, Callable[[int], nn.Module]] = {"patch": PatchEmbed, "conv": ConvStem}


class FeedForward(nn.Module):
    """Two linear layers with exact GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PatchMerging(nn.Module):
    """Halves the map by concatenating 2x2 neighbours; DET tokens pass the same norm and reduction, repeated 4 times."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)
        self.expansion = _frozen(nn.Linear(dim, out_dim, bias=False))
        self.norm2 = _frozen(nn.LayerNorm(dim))

    def merge_patches(self, patches: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H/2), ceil(W/2), out_dim)."""
        batch, height, width, channels = patches.shape
        if torch.jit.is_tracing() or height % 2 or width % 2:
            patches = F.pad(patches, (0, 0, 0, width % 2, 0, height % 2))
        # (B, rows, row of the pair, columns, column of the pair, C), the column in front of the row: one copy
        pairs = patches.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
        return self.reduction(self.norm(pairs.permute(0, 1, 3, 4, 2, 5).flatten(3)))

    def widen_det(self, det: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, out_dim)."""
        return self.reduction(self.norm(det.repeat(1, 1, 4)))


class Block(nn.Module):
    """Pre-norm transformer block whose attention, norms and MLP serve patch and DET tokens alike."""

    def __init__(
        self,
        dim: int,
        pos_dim: int,
        num_heads: int,
        window_size: int,
        shift: int,
        mlp_ratio: float,
        drop_path: float,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.shift, self.drop_path = shift, drop_path
        self.activation_checkpointing = activation_checkpointing
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ReconfiguredAttention(dim, num_heads, window_size)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio))
        self.det_pos_linear = nn.Linear(pos_dim, dim)

    def _drop(self, patches: Tensor, det: Tensor) -> tuple[Tensor, Tensor]:
        """Stochastic depth, one draw per image for both kinds of token."""
        if not self.training or self.drop_path == 0.0:
            return patches, det
        keep = 1.0 - self.drop_path
        draw = patches.new_empty(len(patches), 1, 1).bernoulli_(keep) / keep
        return patches * draw[..., None], det * draw

    def forward(
        self,
        patches: Tensor,
        det: Tensor,
        det_pos: Tensor,
        patch_pos: Tensor | None,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Update (B, H, W, C) patches and (B or 1, N, C) DET tokens; see :class:`ReconfiguredAttention` for the rest.

        DET tokens that are the same for all images come once and leave so, unless stochastic depth sets them apart.
        """
        inputs = (patches, det, det_pos, patch_pos, padding_mask)
        return checkpointed(self.activation_checkpointing, self._update, *inputs)

    def _update(
        self, patches: Tensor, det: Tensor, det_pos: Tensor, patch_pos: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # The position enters q, k and v but not the residual (reference: ViDT's code).
        update = self.attn(
            self.norm1(patches),
            self.norm1(det) + self.det_pos_linear(det_pos),
            shift=self.shift,
            patch_pos=patch_pos,
            padding_mask=mask,
        )
        update = self._drop(*update)
        patches, det = patches + update[0], det + update[1]
        update = self._drop(self.mlp(self.norm2(patches)), self.mlp(self.norm2(det)))
        return patches + update[0], det + update[1]


class Stage(nn.Module):
    """Blocks of one width, then a patch merging."""

    def __init__(self, blocks: Sequence[Block], downsample: PatchMerging) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class SwinRAM(DetBackbone):
    """Swin with DET tokens.

    Args:
        embed_dim: channels of the first stage, doubled by each further one.
        depths: blocks per stage (four stages).
        num_heads: attention heads per stage.
        window_size: side of the attention windows; odd blocks shift them by half of it.
        mlp_ratio: hidden width of the feed-forward layers over their input width.
        drop_path: stochastic depth of the last block; it grows linearly from 0.
        num_det_tokens: N.
        pos_channels: width of the DET position embedding; also the width of the stride-64 level.
        activation_checkpointing: keep the blocks' inputs only and run the blocks again in the backward.
        stem: "patch" (ViDT) or "conv" (three convolutions with BatchNorm, for small data sets).
    """

    strides = (8, 16, 32, 64)

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        num_det_tokens: int = 100,
        pos_channels: int = 256,
        stem: str = "patch",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or len(num_heads) != 4:
            raise ValueError(
                f"Swin has four stages; got depths {tuple(depths)} and num_heads {tuple(num_heads)}"
            )
        if stem not in STEMS:
            raise ValueError(f"unknown stem {stem!r}; there are {sorted(STEMS)}")
        dims = [embed_dim * 2**i for i in range(4)]
        self.channels = (*dims[1:], pos_channels)
        self.num_det_tokens, self.det_channels, self.pos_channels = num_det_tokens, dims[-1], pos_channels

        self.patch_embed = STEMS[stem](embed_dim)
        self.det_token = nn.Parameter(torch.empty(1, num_det_tokens, embed_dim))
        self.det_pos_embed = nn.Parameter(torch.empty(1, num_det_tokens, pos_channels))
        for token in (self.det_token, self.det_pos_embed):
            nn.init.trunc_normal_(token, std=0.02)
        rates = [drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, depths)):
            sizes, shifts = (dim, pos_channels, num_heads[i], window_size), (0, window_size // 2)
            blocks = [
                Block(*sizes, shifts[j % 2], mlp_ratio, rates.pop(0), activation_checkpointing)
                for j in range(depth)
            ]
            stages.append(Stage(blocks, PatchMerging(dim, dims[i + 1] if i < 3 else pos_channels)))
        self.layers = nn.ModuleList(stages)
        for i in (1, 2, 3):
            self.add_module(f"norm{i}", _frozen(nn.LayerNorm(dims[i])))

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetFeatures:
        patches = self.patch_embed(images)
        # Resized first to this size and only then, if it differs, to the last stage's: the two roundings are part of
        # the published model (one step moves boxes by up to 0.17).
        # (Eighths, but at least one cell; in arithmetic, because of a max() a trace would keep one argument.)
        coarse = tuple(side // 8 + 1 // (side // 8 + 1) for side in patches.shape[1:3])
        padding_mask = resize_mask(padding_mask, coarse)
        # Nothing that the tokens meet before the last stage depends on the image: until then one set serves all.
        det = self.det_token
        features: list[Tensor] = []
        for i, stage in enumerate(self.layers):
            patch_pos = None
            if i == 3:
                size = tuple(patches.shape[1:3])
                if torch.jit.is_tracing() or size != coarse:
                    padding_mask = resize_mask(padding_mask, size)
                patch_pos = masked_sine_encoding(padding_mask, patches.shape[-1])
                det = det.expand(patches.shape[0], -1, -1)
            for block in stage.blocks:
                patches, det = block(patches, det, self.det_pos_embed, patch_pos, padding_mask)
            if i > 0:
                features.append(patches.permute(0, 3, 1, 2))
            if i < 3:
                det = stage.downsample.widen_det(det)
            patches = stage.downsample.merge_patches(patches)
        features.append(patches.permute(0, 3, 1, 2))
        return DetFeatures(features, det, self.det_pos_embed)


@register_backbone("swin_nano")
def swin_nano(**kwargs: Any) -> SwinRAM:
    """Swin-nano (48 channels, [2, 2, 6, 2] blocks); keyword arguments override :class:`SwinRAM`'s."""
    return SwinRAM(**{"embed_dim": 48, **kwargs})


@register_backbone("swin_tiny")
def swin_tiny(**kwargs: Any) -> SwinRAM:
    """Swin-tiny (96 channels, [2, 2, 6, 2] blocks, drop path 0.2)."""
    return SwinRAM(**{"embed_dim": 96, "drop_path": 0.2, **kwargs})


@register_backbone("swin_small")
def swin_small(**kwargs: Any) -> SwinRAM:
    """Swin-small (96 channels, [2, 2, 18, 2] blocks, drop path 0.3)."""
    return SwinRAM(**{"embed_dim": 96, "depths": (2, 2, 18, 2), "drop_path": 0.3, **kwargs})


@register_backbone("swin_base")
def swin_base(**kwargs: Any) -> SwinRAM:
    """Swin-base (128 channels, [2, 2, 18, 2] blocks, window 7, drop path 0.3)."""
    options: dict[str, Any] = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    return SwinRAM(**{**options, "drop_path": 0.3, **kwargs})
