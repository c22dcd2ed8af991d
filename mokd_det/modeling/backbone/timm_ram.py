"""Any feature pyramid of timm as a backbone with DET tokens: a RAM-style token path beside a host that knows none.

ViDT's reconfigured attention (Song et al., ICLR 2022, section 3.1) lends the weights of Swin's attention to the DET
tokens. A convolutional or pyramid host has none to lend, so here the tokens bring their own, and are free to keep one
width from the first stage to the last instead of following the host's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from mokd_det.errors import ConfigError
from mokd_det.layers import attend_det_tokens, masked_sine_encoding
from mokd_det.modeling.timm_model import create_timm_model

from .base import DetBackbone, DetFeatures, register_backbone, resize_mask
from .swin_ram import FeedForward

__all__ = ["TimmRAM"]

HOST_STRIDES = (8, 16, 32)


class DetBlock(nn.Module):
    """Pre-norm transformer block of DET tokens: attention, then a feed-forward layer."""

    def __init__(self, dim: int, pos_channels: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.det_pos_linear = nn.Linear(pos_channels, dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio))

    def forward(
        self, det: Tensor, det_pos: Tensor, patches: Tensor | None, padding_mask: Tensor | None
    ) -> Tensor:
        """Update (B, N, C) DET tokens; see :func:`mokd_det.layers.attend_det_tokens` for ``patches`` and the mask."""
        query = self.norm1(det) + self.det_pos_linear(det_pos)
        det = det + self.proj(attend_det_tokens(self.qkv, self.num_heads, query, patches, padding_mask))
        return det + self.mlp(self.norm2(det))


class DetStage(nn.Module):
    """What the DET tokens do beside one stage of the host: blocks, which see its map too if ``channels`` is given."""

    def __init__(self, blocks: Sequence[DetBlock], channels: int | None, dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.patch_proj: nn.Module | None = None
        if channels is not None:
            self.patch_proj = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, dim))

    def forward(self, det: Tensor, det_pos: Tensor, level: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, N, C) tokens, their position (1, N, P), the host's map (B, C_l, H, W), its mask (B, H, W) -> tokens."""
        patches = None
        if self.patch_proj is not None:
            patches = self.patch_proj(level.permute(0, 2, 3, 1))
            # added to keys and values alike, as in ViDT
            patches = patches + masked_sine_encoding(padding_mask, det.shape[-1]).to(patches.dtype)
        for block in self.blocks:
            det = block(det, det_pos, patches, padding_mask)
        return det


class StridedMerging(nn.Module):
    """Halves the host's last map: norm of each cell, then a 2x2 convolution of stride 2."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.reduction = nn.Conv2d(channels, out_channels, kernel_size=2, stride=2)

    def forward(self, level: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, C, H, W) and its mask -> (B, out, ceil(H/2), ceil(W/2)); image padding counts like the map's outside."""
        cells = self.norm(level.permute(0, 2, 3, 1)).masked_fill(padding_mask[..., None], 0.0)
        height, width = level.shape[-2:]
        return self.reduction(F.pad(cells.permute(0, 3, 1, 2), (0, width % 2, 0, height % 2)))


@register_backbone("timm")
class TimmRAM(DetBackbone):
    """A timm model with DET tokens.

    The host's maps of strides 8, 16 and 32 are three stages. Beside each, DET tokens of a constant width pass blocks of
    their own weights: they attend to each other and, in the stages of ``cross_strides``, to the host's map too, under a
    joint softmax, with the masked sine encoding. A strided merging of the last map makes stride 64. The images are
    padded to whole cells of stride 32 and the maps cropped again, so that any image size gives ceil(H/s) by ceil(W/s)
    cells, as with :class:`SwinRAM`: the two can be each other's teacher.

    Args:
        host: name of a timm model (ConvNeXt, PVT-v2, ResNet, …; ``timm.list_models()``).
        weights: local file with the host's weights, as timm publishes them (``.safetensors`` or ``.pth``); a whole
            trained detector is loaded by ``train.init_checkpoint`` instead. "": random.
        download: let timm fetch its weights for ``host`` from the network.
        host_options: further arguments of ``timm.create_model`` (``dict(drop_path_rate=0.1)``). A host whose last three
            maps are not those of strides 8, 16 and 32 needs ``out_indices``.
        frozen_batch_norm: use the host's BatchNorm layers as constants, as is usual with pretrained weights and small
            batches.
        det_channels: channels of the DET tokens, a multiple of 4 and of ``num_heads``.
        det_depths: blocks of the DET tokens beside the host's maps of strides 8, 16 and 32.
        cross_strides: where the tokens see the image; ViDT: in the last stage only.
        num_heads, mlp_ratio: of the tokens' blocks.
        num_det_tokens: N.
        pos_channels: channels of the tokens' position embedding and of the map of stride 64.

    Raises:
        ConfigError: a host or an option that timm does not have, a host without the three strides, or arguments that
            contradict each other.
        CheckpointError: the weights are missing, unreadable, or not the host's.
    """

    strides = (*HOST_STRIDES, 64)

    def __init__(
        self,
        host: str,
        *,
        weights: str = "",
        download: bool = False,
        host_options: Mapping[str, Any] | None = None,
        frozen_batch_norm: bool = False,
        det_channels: int = 256,
        det_depths: Sequence[int] = (1, 1, 2),
        cross_strides: Sequence[int] = (32,),
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        num_det_tokens: int = 100,
        pos_channels: int = 256,
    ) -> None:
        super().__init__()
        _check_token_path(det_channels, det_depths, cross_strides, num_heads)
        self.host = build_host(host, weights, download, host_options)
        if frozen_batch_norm:
            self.host = freeze_batch_norm_2d(self.host)
        host_channels = tuple(self.host.feature_info.channels())
        self.channels = (*host_channels, pos_channels)
        self.num_det_tokens, self.det_channels, self.pos_channels = num_det_tokens, det_channels, pos_channels
        # the names under which ViDT's optimiser groups find them
        self.det_token = nn.Parameter(torch.empty(1, num_det_tokens, det_channels))
        self.det_pos_embed = nn.Parameter(torch.empty(1, num_det_tokens, pos_channels))
        for token in (self.det_token, self.det_pos_embed):
            nn.init.trunc_normal_(token, std=0.02)
        self.stages = nn.ModuleList(
            DetStage(
                [DetBlock(det_channels, pos_channels, num_heads, mlp_ratio) for _ in range(depth)],
                channels if stride in cross_strides else None,
                det_channels,
            )
            for stride, depth, channels in zip(HOST_STRIDES, det_depths, host_channels)
        )
        self.merging = StridedMerging(host_channels[-1], pos_channels)

    def host_maps(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the host's maps (B, C_l, ceil(H/s), ceil(W/s)) of strides 8, 16 and 32."""
        height, width = images.shape[-2:]
        # at least 2x2 cells of the coarsest map: BatchNorm cannot train on a single value
        # (in arithmetic, because of a max() a trace would keep one argument)
        cells = [(side + 31) // 32 for side in (height, width)]
        padded = [32 * (count + 1 // count) for count in cells]
        maps = self.host(F.pad(images, (0, padded[1] - width, 0, padded[0] - height)))
        if getattr(self.host, "output_fmt", "NCHW") == "NHWC":
            maps = [level.permute(0, 3, 1, 2) for level in maps]
        return [level[..., : -(-height // s), : -(-width // s)] for level, s in zip(maps, HOST_STRIDES)]

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetFeatures:
        maps = self.host_maps(images)
        det = self.det_token.expand(images.shape[0], -1, -1)
        for stage, level in zip(self.stages, maps):
            mask = resize_mask(padding_mask, tuple(level.shape[-2:]))
            det = stage(det, self.det_pos_embed, level, mask)
        return DetFeatures([*maps, self.merging(maps[-1], mask)], det, self.det_pos_embed)


def _check_token_path(
    det_channels: int, det_depths: Sequence[int], cross_strides: Sequence[int], num_heads: int
) -> None:
    if det_channels % 4 or det_channels % num_heads:
        raise ConfigError(
            f"det_channels={det_channels} must be a multiple of 4 (the sine encoding) and of num_heads={num_heads}"
        )
    if len(det_depths) != len(HOST_STRIDES) or min(det_depths) < 0:
        raise ConfigError(
            f"det_depths={tuple(det_depths)} must hold one number of blocks for each of the strides {HOST_STRIDES}"
        )
    for stride in cross_strides:
        if stride not in HOST_STRIDES or det_depths[HOST_STRIDES.index(stride)] == 0:
            raise ConfigError(
                f"cross_strides={tuple(cross_strides)} names {stride}, which must be one of {HOST_STRIDES} and have "
                f"blocks in det_depths={tuple(det_depths)}"
            )
    if not cross_strides:
        raise ConfigError("cross_strides is empty: the DET tokens would never see the image")


def build_host(
    name: str, weights: str = "", download: bool = False, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """A timm model that returns its maps of strides 8, 16 and 32; arguments and errors as of :class:`TimmRAM`."""
    arguments = {"out_indices": (-3, -2, -1), **(options or {}), "features_only": True}
    arguments["out_indices"] = tuple(arguments["out_indices"])
    host = create_timm_model(
        name, weights=weights, download=download, what=f"the feature maps of {name}", **arguments
    )
    reductions = tuple(host.feature_info.reduction())
    if reductions != HOST_STRIDES:
        raise ConfigError(
            f"{name} gives maps of strides {reductions} for out_indices={arguments['out_indices']}; a host needs those "
            f"of {HOST_STRIDES} (host_options=dict(out_indices=...) selects them, if it has them)"
        )
    return host
