"""Wide ResNets (Zagoruyko and Komodakis, BMVC 2016): pre-activation units, no dropout."""

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
)
from mokd_det.errors import ConfigError

__all__ = ["WideResNet", "wrn_40_1", "wrn_40_2"]

STEM = 16


class PreActivationUnit(nn.Module):
    """BatchNorm, ReLU and 3×3 convolution, twice, and a shortcut.

    Where the width changes, the shortcut's convolution sees the *activated* input, as published.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = conv3x3(channels_in, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.convShortcut = None if channels_in == channels else conv1x1(channels_in, channels, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The unit's output, and ``bn1`` of its input: what the unit before it is tapped as before a ReLU."""
        normalised = self.bn1(x)
        activated = F.relu(normalised)
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        out = out + (x if self.convShortcut is None else self.convShortcut(activated))
        return out, normalised


class Block(nn.Module):
    """n units; the first has the stride and changes the width."""

    def __init__(self, units: int, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(
                PreActivationUnit(channels if i else channels_in, channels, 1 if i else stride)
                for i in range(units)
            )
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and the first ``bn1`` of its input."""
        x, normalised = self.layer[0](x)
        for unit in self.layer[1:]:
            x, _ = unit(x)
        return x, normalised


class WideResNet(CifarNetwork):
    """WRN-D-k of depth D = 6n + 4 and width factor k, with the classifier ``fc``.

    The maps f0 … f3 are sums that no ReLU follows; p1 … p3 are what the following BatchNorm makes of f1 … f3.

    Args:
        depth: 6n + 4.
        width: k.

    Raises:
        ConfigError: another depth, or a width below 1.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 100) -> None:
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise ConfigError(
                f"a wide ResNet has depth 6n + 4 and a width of 1 or more, not depth {depth} and width {width}"
            )
        widths = [STEM * width * factor for factor in (1, 2, 4)]
        super().__init__(num_classes, list(zip((STEM, *widths), (1, 1, 2, 4))), widths[-1])
        units = (depth - 4) // 6
        self.conv1 = conv3x3(3, STEM)
        self.block1 = Block(units, STEM, widths[0], 1)
        self.block2 = Block(units, widths[0], widths[1], 2)
        self.block3 = Block(units, widths[1], widths[2], 2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        fan_out_normal_(self)
        nn.init.zeros_(self.fc.bias)

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def pre_activation_norms(self) -> list[nn.BatchNorm2d]:
        return [self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1]

    def features(self, images: Tensor, maps: StageMaps, pre: StageMaps) -> Tensor:
        x = self.conv1(images)
        maps.add(x)
        x, _ = self.block1(x)
        maps.add(x)
        for block in (self.block2, self.block3):
            x, normalised = block(x)
            pre.add(normalised)
            maps.add(x)
        normalised = self.bn1(x)
        pre.add(normalised)
        return global_average_pool(F.relu(normalised))


def wrn_40_1(num_classes: int = 100) -> WideResNet:
    """WRN-40-1: 0.57 million parameters for 100 classes."""
    return WideResNet(40, 1, num_classes)


def wrn_40_2(num_classes: int = 100) -> WideResNet:
    """WRN-40-2: 2.3 million parameters for 100 classes."""
    return WideResNet(40, 2, num_classes)
