"""Knowledge review (Chen et al., CVPR 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.stage_pairs import StagePairs
from mokd_det.distillation.taps import Specs, Taps
from mokd_det.distillation.vectors import vector_pair
from mokd_det.distillation.warmup import WarmUp

__all__ = ["FusionUnit", "ReviewKD", "pyramid_distance"]


class FusionUnit(nn.Module):
    """Joins a stage of the student (n_s channels) with what came from the deeper ones (attention-based fusion).

    h = BN(1 × 1 convolution) of ``mid`` channels; unless it is the deepest unit, h = a₁ h + a₂ r with r the deeper
    unit's h, enlarged to the same size, and (a₁, a₂) = sigmoid(1 × 1 convolution of [h, r]). h goes on to the next unit
    in the teacher's size; its output is BN(3 × 3 convolution of h), of the teacher's n_t channels.
    """

    def __init__(self, n_s: int, mid: int, n_t: int, fuses: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(n_s, mid, 1, bias=False), nn.BatchNorm2d(mid))
        self.conv2 = nn.Sequential(nn.Conv2d(mid, n_t, 3, padding=1, bias=False), nn.BatchNorm2d(n_t))
        self.att_conv = nn.Sequential(nn.Conv2d(2 * mid, 2, 1), nn.Sigmoid()) if fuses else None
        for stage in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(stage[0].weight, a=1)

    def forward(self, maps: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, n_s, H, W) and the deeper unit's h → the output (B, n_t, *size) and this unit's h."""
        hidden = self.conv1(maps)
        if self.att_conv is not None and deeper is not None:
            deeper = F.interpolate(deeper, size=hidden.shape[-2:], mode="nearest")
            gates = self.att_conv(torch.cat((hidden, deeper), 1))
            hidden = gates[:, :1] * hidden + gates[:, 1:] * deeper
        if tuple(hidden.shape[-2:]) != size:
            hidden = F.interpolate(hidden, size=size, mode="nearest")
        return self.conv2(hidden), hidden


class ReviewKD(Method):
    """``review``: the teacher's stages from the student's, each reviewed with all deeper ones.

    The pooled vector is the deepest stage, a map of one cell. Units run from deep to shallow (:class:`FusionUnit`, mid
    = min(512, the student's deepest width)); the loss is the sum over stages of :func:`pyramid_distance`. Stages are
    paired from the deepest one: the published taps are the student's stages and the teacher's before their last ReLU,
    ``maps=dict(student="maps", teacher="pre")``. Published weights 0.6 to 8, by pair of networks.

    Args:
        warmup_epochs: see :class:`~mokd_det.distillation.warmup.WarmUp`; published: 20.
    """

    tap_kinds = {"maps": "maps", "pooled": "vectors"}

    def __init__(self, warmup_epochs: float = 0) -> None:
        super().__init__()
        self.warm_up = WarmUp(warmup_epochs)
        self.units = nn.ModuleList()
        self._stages: StagePairs | None = None

    def build_for(self, student: Specs, teacher: Specs) -> None:
        self._stages = StagePairs("maps", student, teacher)
        channels = [*self._stages.channels, (student["pooled"].channels[0], teacher["pooled"].channels[0])]
        mid = min(512, channels[-1][0])
        for index, (n_s, n_t) in enumerate(reversed(channels)):
            self.units.append(FusionUnit(n_s, mid, n_t, fuses=index > 0))

    def distances(self, student: Taps, teacher: Taps) -> list[Tensor]:
        """The distance of each stage, shallow to deep."""
        assert self._stages is not None  # built by setup
        vectors = vector_pair("pooled", student, teacher)
        stages = [
            *self._stages(student, teacher),
            (vectors[0][:, :, None, None], vectors[1][:, :, None, None]),
        ]
        hidden, found = None, []
        for unit, (map_s, map_t) in zip(self.units, reversed(stages), strict=True):
            output, hidden = unit(map_s, hidden, tuple(map_t.shape[-2:]))
            found.append(pyramid_distance(output, map_t))
        return found[::-1]

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        return self.warm_up({"review": torch.stack(self.distances(student, teacher)).sum()}, context.epoch)


def pyramid_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squares of (B, C, H, W) at full size and averaged to 4, 2 and 1 cells a side (hierarchical context loss).

    Weights 1, 1/2, 1/4, 1/8 in that order over the sizes below H, divided by their sum.
    """
    total, weight, weights = F.mse_loss(prediction, target), 1.0, 1.0
    for side in (4, 2, 1):
        if side < prediction.shape[-2]:
            weight /= 2
            pooled = (F.adaptive_avg_pool2d(maps, side) for maps in (prediction, target))
            total = total + weight * F.mse_loss(*pooled)
            weights += weight
    return total / weights
