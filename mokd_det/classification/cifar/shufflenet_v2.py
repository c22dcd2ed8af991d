"""ShuffleNet v2 (Ma et al., ECCV 2018) of width 1 with a stem for 32-pixel images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.classification.cifar.network import (
    CifarNetwork,
    StageMaps,
    conv1x1,
    conv3x3,
    global_average_pool,
)
from mokd_det.classification.cifar.shufflenet_v1 import channel_shuffle

__all__ = ["CifarShuffleNetV2", "shufflenet_v2"]

STEM, HEAD = 24, 1024
# (channels, units after the one that halves the size) of each stage
STAGES = ((116, 3), (232, 7), (464, 3))


class DownUnit(nn.Module):
    """Halves the size: two branches of half the channels each, stacked and shuffled."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv3x3(channels_in, channels_in, stride=2, groups=channels_in)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv2 = conv1x1(channels_in, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(channels_in, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        right = F.relu(self.bn5(self.conv5(right)))
        return channel_shuffle(torch.cat((left, right), 1), 2)


class SplitUnit(nn.Module):
    """Passes the first half of the channels and transforms the second.

    Returns both, the second *before* its ReLU; :meth:`join` makes the unit's output of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, out = x.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(out)))
        return kept, self.bn3(self.conv3(self.bn2(self.conv2(out))))

    @staticmethod
    def join(kept: Tensor, transformed: Tensor) -> Tensor:
        """Both halves, activated and shuffled."""
        return channel_shuffle(torch.cat((kept, F.relu(transformed)), 1), 2)


class CifarShuffleNetV2(CifarNetwork):
    """ShuffleNet v2 ×1: a 1×1 stem, stages of 116, 232 and 464 channels, a 1×1 head, the classifier ``linear``.

    The maps f1 … f3 are shuffled, p1 … p3 are not: their channels come in another order.
    """

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__(
            num_classes,
            [(STEM, 1), *((channels, 2**i) for i, (channels, _) in enumerate(STAGES, 1))],
            HEAD,
        )
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        width = STEM
        for number, (channels, units) in enumerate(STAGES, 1):
            stage = [DownUnit(width, channels), *(SplitUnit(channels) for _ in range(units))]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            width = channels
        self.conv2 = conv1x1(width, HEAD)
        self.bn2 = nn.BatchNorm2d(HEAD)
        self.linear = nn.Linear(HEAD, num_classes)

    def get_classifier(self) -> nn.Linear:
        return self.linear

    def features(self, images: Tensor, maps: StageMaps, pre: StageMaps) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        maps.add(x)
        for stage in (self.layer1, self.layer2, self.layer3):
            down, *units = stage
            x = down(x)
            for unit in units:
                kept, transformed = unit(x)
                x = unit.join(kept, transformed)
            if pre.wanted:
                pre.add(torch.cat((kept, transformed), 1))
            maps.add(x)
        return global_average_pool(F.relu(self.bn2(self.conv2(x))))


def shufflenet_v2(num_classes: int = 100) -> CifarShuffleNetV2:
    """ShuffleNet v2 ×1: 1.4 million parameters for 100 classes."""
    return CifarShuffleNetV2(num_classes)
