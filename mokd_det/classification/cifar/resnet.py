"""CIFAR ResNets of basic blocks (He et al., CVPR 2016, section 4.2), and their 4 times wider kin."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.classification.cifar.network import (
    CifarNetwork,
    StageMaps,
    conv1x1,
    conv3x3,
    fan_out_normal_,
    global_average_pool,
    run_stages,
)
from mokd_det.errors import ConfigError

__all__ = ["CifarResNet", "resnet8x4", "resnet20", "resnet32x4", "resnet56"]

STRIDES = (1, 2, 2)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; returns the sum *before* its ReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(conv1x1(channels_in, channels, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return out + (x if self.downsample is None else self.downsample(x))


class CifarResNet(CifarNetwork):
    """ResNet of depth 6n + 2: a 3×3 stem, three stages of n basic blocks, a linear classifier ``fc``.

    Args:
        depth: 6n + 2.
        widths: channels of the stem and of the three stages.

    Raises:
        ConfigError: another depth or number of widths.
    """

    def __init__(self, depth: int, widths: Sequence[int] = (16, 16, 32, 64), num_classes: int = 100) -> None:
        if depth < 8 or (depth - 2) % 6 or len(widths) != 4:
            raise ConfigError(
                f"a CIFAR ResNet has depth 6n + 2 and four widths, not depth {depth} and widths {tuple(widths)}"
            )
        super().__init__(num_classes, list(zip(widths, (1, 1, 2, 4))), widths[-1])
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        for number, ((width_in, width), stride) in enumerate(zip(pairwise(widths), STRIDES), 1):
            stage = [BasicBlock(width if i else width_in, width, 1 if i else stride) for i in range(blocks)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.fc = nn.Linear(widths[-1], num_classes)
        fan_out_normal_(self)

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """Blocks of each stage."""
        return (self.layer1, self.layer2, self.layer3)

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def pre_activation_norms(self) -> list[nn.BatchNorm2d]:
        return [stage[-1].bn2 for stage in self.stages]

    def features(self, images: Tensor, maps: StageMaps, pre: StageMaps) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        maps.add(x)
        return global_average_pool(run_stages(self.stages, x, maps, pre))


def resnet20(num_classes: int = 100) -> CifarResNet:
    """ResNet-20: 0.28 million parameters for 100 classes."""
    return CifarResNet(20, num_classes=num_classes)


def resnet56(num_classes: int = 100) -> CifarResNet:
    """ResNet-56: 0.86 million parameters for 100 classes."""
    return CifarResNet(56, num_classes=num_classes)


def resnet8x4(num_classes: int = 100) -> CifarResNet:
    """ResNet-8 of fourfold width: 1.2 million parameters for 100 classes."""
    return CifarResNet(8, (32, 64, 128, 256), num_classes)


def resnet32x4(num_classes: int = 100) -> CifarResNet:
    """ResNet-32 of fourfold width: 7.4 million parameters for 100 classes."""
    return CifarResNet(32, (32, 64, 128, 256), num_classes)
