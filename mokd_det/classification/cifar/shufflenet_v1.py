"""ShuffleNet v1 (Zhang et al., CVPR 2018) with 3 groups and a stem for 32-pixel images."""

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
    run_stages,
)

__all__ = ["CifarShuffleNetV1", "channel_shuffle", "shufflenet_v1"]

STEM, GROUPS = 24, 3
# (channels, units) of each stage
STAGES = ((240, 4), (480, 8), (960, 4))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` equal groups: channel j of group i goes to place j·groups + i."""
    batch, channels, height, width = x.shape
    split = x.reshape(batch, groups, channels // groups, height, width)
    return split.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Grouped 1×1, depthwise 3×3 and grouped 1×1 convolution; returns its sum or stack *before* the ReLU.

    A unit of stride 2 stacks the branch on the average-pooled input instead of adding. As published, the
    depthwise convolution is activated, and the first unit, whose input is narrow, does not group its first
    convolution but does shuffle after it.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        branch = channels - channels_in if stride == 2 else channels
        middle = branch // 4
        self.shuffle_groups = 1 if channels_in == STEM else GROUPS
        self.conv1 = conv1x1(channels_in, middle, groups=self.shuffle_groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = conv3x3(middle, middle, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv1x1(middle, branch, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.shuffle_groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return out + x
        return torch.cat((out, F.avg_pool2d(x, 3, stride=2, padding=1)), 1)


class CifarShuffleNetV1(CifarNetwork):
    """ShuffleNet v1: a 1×1 stem, stages of 240, 480 and 960 channels, the classifier ``linear``."""

    def __init__(self, num_classes: int = 100) -> None:
        width = STEM
        super().__init__(
            num_classes,
            [(STEM, 1), *((channels, 2**i) for i, (channels, _) in enumerate(STAGES, 1))],
            STAGES[-1][0],
        )
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        for number, (channels, units) in enumerate(STAGES, 1):
            stage = [ShuffleUnit(width, channels, 2)]
            stage += [ShuffleUnit(channels, channels, 1) for _ in range(units - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            width = channels
        self.linear = nn.Linear(width, num_classes)

    def get_classifier(self) -> nn.Linear:
        return self.linear

    def pre_activation_norms(self) -> list[nn.BatchNorm2d]:
        return [stage[-1].bn3 for stage in (self.layer1, self.layer2, self.layer3)]

    def features(self, images: Tensor, maps: StageMaps, pre: StageMaps) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        maps.add(x)
        stages = (self.layer1, self.layer2, self.layer3)
        return global_average_pool(run_stages(stages, x, maps, pre))


def shufflenet_v1(num_classes: int = 100) -> CifarShuffleNetV1:
    """ShuffleNet v1, 3 groups: 0.95 million parameters for 100 classes."""
    return CifarShuffleNetV1(num_classes)
