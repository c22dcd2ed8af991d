"""From backbone features to the decoder's d channels: plain projections, or ViDT+'s pyramid fusion (EPFF)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.errors import ConfigError

__all__ = ["EPFF", "InputProjection", "projection"]


def projection(in_channels: int, out_channels: int, norm_groups: int = 32) -> nn.Sequential:
    """1x1 convolution (xavier, zero bias) and GroupNorm; a ConfigError if its groups do not divide the channels."""
    if norm_groups < 1 or out_channels % norm_groups:
        raise ConfigError(
            f"norm_groups={norm_groups}: must divide the {out_channels} channels of the decoder "
            f"(transformer.embed_dim); the published model has 32 groups of 8"
        )
    layer = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1), nn.GroupNorm(norm_groups, out_channels)
    )
    nn.init.xavier_uniform_(layer[0].weight)
    nn.init.zeros_(layer[0].bias)
    return layer


class InputProjection(nn.ModuleList):
    """One projection per level; the levels keep their order.

    Empty until :meth:`setup`: the detector tells a neck what its backbone delivers, so that a config names both
    without repeating channel counts. ``published_name`` is the neck's place in published checkpoints.

    Args:
        norm_groups: groups of the GroupNorms, those of the detector's own projections included. 32 as published,
            which is 8 channels a group at d = 256. With small d choose as many that 8 are left: a group of two
            channels on a map of one cell normalises two numbers, and all that remains is which is the larger.
    """

    published_name = "input_proj"

    def __init__(self, norm_groups: int = 32) -> None:
        super().__init__()
        self.norm_groups = norm_groups

    def setup(self, channels: Sequence[int], strides: Sequence[int], embed_dim: int) -> None:
        """Build the layers, from levels of these channels and strides to d channels."""
        self.strides = tuple(strides)
        self.extend(projection(c, embed_dim, self.norm_groups) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[(B, C_l, H_l, W_l)] -> [(B, d, H_l, W_l)] in the order of ``strides``."""
        return [layer(feature) for layer, feature in zip(self, features)]


class _ResidualUnit(nn.Module):
    """Bottleneck residual unit without norms: 1x1, 3x3, 1x1 convolutions, each after a ReLU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv3 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(x))
        out = self.conv2(F.relu(out))
        return x + self.conv3(F.relu(out))


class _Fusion(nn.Module):
    """Adds the coarser path to a level and refines the sum."""

    def __init__(self, dim: int, hidden: int, coarsest: bool) -> None:
        super().__init__()
        self.smoothing = nn.Conv2d(dim, dim, 1)
        self.resConfUnit1 = _ResidualUnit(dim, hidden)
        self.resConfUnit2 = _ResidualUnit(dim, hidden)
        if coarsest:  # nothing to add: these two exist in published checkpoints only
            self.smoothing.requires_grad_(False)
            self.resConfUnit1.requires_grad_(False)

    def forward(self, level: Tensor, path: Tensor | None) -> Tensor:
        if path is not None:
            path = F.interpolate(path, size=level.shape[-2:], mode="bilinear", align_corners=True)
            level = self.smoothing(path) + self.resConfUnit1(level)
        return self.resConfUnit2(level)


class _TopDown(nn.Module):
    """The top-down pass of EPFF under its published parameter names."""

    def __init__(self, channels: Sequence[int], embed_dim: int, hidden: int, norm_groups: int) -> None:
        super().__init__()
        self.num_levels = len(channels)
        for i, in_channels in enumerate(channels):
            conv, norm = projection(in_channels, embed_dim, norm_groups)
            self.add_module(f"layer_{i}_rn", conv)
            self.add_module(f"p_norm_{i}", norm)
            self.add_module(f"refinenet_{i}", _Fusion(embed_dim, hidden, coarsest=i == self.num_levels - 1))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        path, outputs = None, []
        for i in reversed(range(self.num_levels)):
            conv, norm = self.get_submodule(f"layer_{i}_rn"), self.get_submodule(f"p_norm_{i}")
            path = self.get_submodule(f"refinenet_{i}")(norm(conv(features[i])), path)
            outputs.append(path)
        return outputs


class EPFF(nn.Module):
    """Efficient pyramid feature fusion of ViDT+ (Song et al. 2022, section 3.2): a light top-down pyramid.

    The output runs from the coarsest level to the finest, as the published decoder weights expect; ``strides`` says so.

    Args:
        hidden_dim: channels of the residual units' bottleneck.
        norm_groups: as of :class:`InputProjection`.
    """

    published_name = "fusion"

    def __init__(self, hidden_dim: int = 64, norm_groups: int = 32) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.norm_groups = norm_groups

    def setup(self, channels: Sequence[int], strides: Sequence[int], embed_dim: int) -> None:
        """Build the layers; as :meth:`InputProjection.setup`, levels finest first."""
        self.strides = tuple(reversed(tuple(strides)))
        self.multi_scaler = _TopDown(channels, embed_dim, self.hidden_dim, self.norm_groups)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[(B, C_l, H_l, W_l)], finest first -> [(B, d, H_l, W_l)], coarsest first."""
        return self.multi_scaler(features)
