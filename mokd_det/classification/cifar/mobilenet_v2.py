"""MobileNetV2 (Sandler et al., CVPR 2018) of half width, as the CIFAR distillation literature uses it."""

from __future__ import annotations

from torch import Tensor, nn

from mokd_det.classification.cifar.network import (
    CifarNetwork,
    StageMaps,
    conv1x1,
    conv3x3,
    fan_out_normal_,
    global_average_pool,
)

__all__ = ["CifarMobileNetV2", "mobilenet_v2"]

STEM, HEAD = 16, 1280
# (expansion, channels, blocks, stride) of each stage
STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
TAPPED = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise and linear 1×1 convolution; nothing is activated after the sum.

    The published network keeps the expansion convolution even where it does not expand, and activates with
    ReLU instead of ReLU6.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * channels_in
        self.is_residual = stride == 1 and channels_in == channels
        self.conv = nn.Sequential(
            conv1x1(channels_in, hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv3x3(hidden, hidden, stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv1x1(hidden, channels),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.is_residual else self.conv(x)


class CifarMobileNetV2(CifarNetwork):
    """MobileNetV2 of width 0.5 with expansion 6; its stem halves the image. The classifier is ``classifier.0``.

    The maps f1 … f4 are the outputs of four of the seven stages: linear bottlenecks, so there is no ``pre`` tap.
    """

    def __init__(self, num_classes: int = 100) -> None:
        maps, stride_so_far = [(STEM, 2)], 2
        for index, (_, channels, _, stride) in enumerate(STAGES):
            stride_so_far *= stride
            if index in TAPPED:
                maps.append((channels, stride_so_far))
        super().__init__(num_classes, maps, HEAD, pre=False)
        self.conv1 = nn.Sequential(conv3x3(3, STEM, stride=2), nn.BatchNorm2d(STEM), nn.ReLU())
        stages, width = [], STEM
        for expansion, channels, blocks, stride in STAGES:
            stage = []
            for index in range(blocks):
                stage.append(InvertedResidual(width, channels, 1 if index else stride, expansion))
                width = channels
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.ModuleList(stages)
        self.conv2 = nn.Sequential(conv1x1(width, HEAD), nn.BatchNorm2d(HEAD), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(HEAD, num_classes))
        fan_out_normal_(self)
        nn.init.normal_(self.classifier[0].weight, std=0.01)
        nn.init.zeros_(self.classifier[0].bias)

    def get_classifier(self) -> nn.Linear:
        return self.classifier[0]

    def features(self, images: Tensor, maps: StageMaps, pre: StageMaps) -> Tensor:
        x = self.conv1(images)
        maps.add(x)
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in TAPPED:
                maps.add(x)
        return global_average_pool(self.conv2(x))


def mobilenet_v2(num_classes: int = 100) -> CifarMobileNetV2:
    """MobileNetV2 of width 0.5: 0.81 million parameters for 100 classes."""
    return CifarMobileNetV2(num_classes)
