"""ResNet-50 with a stem for 32-pixel images."""

from __future__ import annotations

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

__all__ = ["CifarResNet50", "resnet50"]

EXPANSION = 4
# (channels of the 3×3 convolutions, blocks, stride) of each stage
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride) and 1×1 convolution and a shortcut; returns the sum *before* its ReLU."""

    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        channels = EXPANSION * planes
        self.conv1 = conv1x1(channels_in, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, channels)
        self.bn3 = nn.BatchNorm2d(channels)
        # the published network has an empty container where nothing is to be adapted
        adapted = stride != 1 or channels_in != channels
        layers = [conv1x1(channels_in, channels, stride), nn.BatchNorm2d(channels)] if adapted else []
        self.shortcut = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + self.shortcut(x)


class CifarResNet50(CifarNetwork):
    """ResNet-50 whose stem is one 3×3 convolution of stride 1, without pooling; its classifier is ``linear``."""

    def __init__(self, num_classes: int = 100) -> None:
        maps, stride_so_far = [(STAGES[0][0], 1)], 1
        for planes, _, stride in STAGES:
            stride_so_far *= stride
            maps.append((EXPANSION * planes, stride_so_far))
        super().__init__(num_classes, maps, maps[-1][0])
        width = STAGES[0][0]
        self.conv1 = conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        for number, (planes, blocks, stride) in enumerate(STAGES, 1):
            stage = []
            for index in range(blocks):
                stage.append(Bottleneck(width, planes, 1 if index else stride))
                width = EXPANSION * planes
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.linear = nn.Linear(width, num_classes)
        fan_out_normal_(self)

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """Blocks of each stage."""
        return (self.layer1, self.layer2, self.layer3, self.layer4)

    def get_classifier(self) -> nn.Linear:
        return self.linear

    def pre_activation_norms(self) -> list[nn.BatchNorm2d]:
        return [stage[-1].bn3 for stage in self.stages]

    def features(self, images: Tensor, maps: StageMaps, pre: StageMaps) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        maps.add(x)
        return global_average_pool(run_stages(self.stages, x, maps, pre))


def resnet50(num_classes: int = 100) -> CifarResNet50:
    """ResNet-50 for 32-pixel images: 23.7 million parameters for 100 classes."""
    return CifarResNet50(num_classes)
