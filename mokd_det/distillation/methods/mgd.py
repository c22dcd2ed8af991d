"""MGD: the teacher's maps generated from masked ones of the student (Yang et al., ECCV 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mokd_det.distillation.across_ranks import mean_over_ranks
from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.map_adapters import build_adapters
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import require_kind
from mokd_det.distillation.rows import MapPair, pair_maps, row_channels
from mokd_det.distillation.taps import Specs, Taps
from mokd_det.errors import ConfigError, require_choice

__all__ = ["MGD", "Generator"]

Mask = Literal["space", "channels"]
Reduction = Literal["sum", "mean"]


class Generator(nn.Module):
    """Convolution 3 × 3, ReLU, convolution 3 × 3, as if padded cells were outside of the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor, valid: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape; ``valid`` (B, 1, H, W) is 0 on padding."""
        return self.second(self.first(maps * valid).relu() * valid)


class MGD(Method):
    """One term per tap, the sum over its map levels.

    With M a random mask of 0 and 1, A a 1 × 1 convolution where channels differ (else the identity) and G two 3 × 3
    convolutions with a ReLU between them,

        patch = Σ_levels Σ (G(M ⊙ A(F_s)) − F_t)² / images

    M is drawn anew in each forward: cells of an image (``mask="space"``, detection) or its channels
    (``mask="channels"``, classification) are dropped with probability ``ratio``. Published per level: weight
    2e-5 and ratio 0.65 for one-stage detectors, 5e-7 and 0.45 for two-stage ones.

    A sum over cells and channels grows with the images' size and with the pyramid, and the weight with it:
    ``reduction="mean"`` divides by the number of valid cells and channels instead, level by level (weight about 1).

    Args:
        mask: "space" or "channels".
        ratio: share that is dropped, in [0, 1).
        reduction: "sum", per image, as published, or "mean".
        mask_padding: leave padded cells out of the loss and of what the generator sees.

    Raises:
        ConfigError: a ratio outside of [0, 1), or another mask or reduction.
    """

    def __init__(
        self,
        mask: Mask = "space",
        ratio: float = 0.65,
        reduction: Reduction = "sum",
        mask_padding: bool = True,
    ) -> None:
        super().__init__(mask_padding)
        require_choice("mask", mask, Mask)
        require_choice("reduction", reduction, Reduction)
        if not 0 <= ratio < 1:
            raise ConfigError(f"MGD: ratio={ratio} is no share to drop; use 0 or more and less than 1")
        self.mask, self.ratio, self.reduction = mask, ratio, reduction
        self.adapters = nn.ModuleDict()
        self.generators = nn.ModuleDict()

    def check(self, student: Specs, teacher: Specs) -> None:
        for name in student:
            require_kind("MGD", name, "maps", student, teacher)
        super().check(student, teacher)

    def build_for(self, student: Specs, teacher: Specs) -> None:
        for name, spec in teacher.items():
            channels = row_channels(name, student[name], spec)
            self.adapters.update(build_adapters(channels))
            self.generators.update({key: Generator(n_t) for key, (_, n_t) in channels.items()})

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        pairs = {
            name: pair_maps(name, student[name], teacher[name], self.mask_padding) for name in self.tap_names
        }
        return {name: torch.stack([self._level(pair) for pair in tap]).sum() for name, tap in pairs.items()}

    def _level(self, pair: MapPair) -> Tensor:
        maps, valid = self.adapters[pair.key](pair.student), pair.valid[:, None]
        batch, channels, height, width = maps.shape
        shape = (batch, 1, height, width) if self.mask == "space" else (batch, channels, 1, 1)
        kept = (torch.rand(shape, device=maps.device) >= self.ratio).to(maps.dtype)
        squares = (self.generators[pair.key](maps * kept, valid) - pair.teacher).square() * valid
        count = valid.sum() * channels if self.reduction == "mean" else batch
        return squares.sum() / mean_over_ranks(count, maps).clamp_min(1)
