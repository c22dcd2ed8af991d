"""What the CIFAR networks share: their taps and the way from pooled features to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from math import sqrt

import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.errors import ConfigError
from mokd_det.layers.tap_point import FeatureMap, TapPoint, TapSpec

__all__ = ["CifarNetwork", "StageMaps", "conv1x1", "conv3x3", "fan_out_normal_", "global_average_pool"]


class StageMaps:
    """The maps that one forward pass delivers at a tap; kept only if somebody reads the tap.

    Args:
        tap: a tap point of maps; None: the network has no such tap.
    """

    def __init__(self, tap: TapPoint | None) -> None:
        self._tap = tap
        self.wanted = tap is not None and tap.is_read
        self._maps: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        """The next map, (B, C, H, W)."""
        if self.wanted:
            self._maps.append(value)

    def deliver(self) -> None:
        """Hand all maps to the tap."""
        if self._tap is not None and self.wanted:
            strides = self._tap.spec.strides
            self._tap([FeatureMap(value, None, stride) for value, stride in zip(self._maps, strides)])


class CifarNetwork(nn.Module, ABC):
    """A classifier of small images whose tensors have the names of the published checkpoints.

    Taps (``taps.*``), by MoKD's reading of the distillation literature:

    * ``maps``: f0 … fk, the stem's output and the stages', as the next stage sees them;
    * ``pre``: p1 … pk, the same stages before their last ReLU, where the network has one;
    * ``pooled``: (B, C), the input of the classifier; ``logits``: (B, K).

    A tap that nobody reads costs nothing: its maps are neither computed nor kept.

    Args:
        num_classes: K.
        maps: (channels, stride) of f0 … fk.
        pooled: channels of the classifier's input.
        pre: whether there are maps before a ReLU; they have the shapes of f1 … fk.

    Raises:
        ConfigError: fewer than one class.
    """

    def __init__(
        self, num_classes: int, maps: Sequence[tuple[int, int]], pooled: int, *, pre: bool = True
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"num_classes is {num_classes}; it must be 1 or more")
        self.num_classes = num_classes
        channels, strides = (tuple(column) for column in zip(*maps))
        self.taps = nn.ModuleDict({"maps": TapPoint(TapSpec("maps", channels, strides))})
        if pre:
            self.taps["pre"] = TapPoint(TapSpec("maps", channels[1:], strides[1:]))
        self.taps["pooled"] = TapPoint(TapSpec("vectors", (pooled,)))
        self.taps["logits"] = TapPoint(TapSpec("vectors", (num_classes,)))

    @abstractmethod
    def features(self, images: Tensor, maps: StageMaps, pre: StageMaps) -> Tensor:
        """Pooled features (B, C) of normalised images (B, 3, 32, 32); adds the stages' maps on the way."""

    @abstractmethod
    def get_classifier(self) -> nn.Linear:
        """The linear layer from pooled features to logits."""

    def pre_activation_norms(self) -> list[nn.BatchNorm2d]:
        """The BatchNorm whose output each map of the ``pre`` tap is, or ends with, shallow to deep.

        Overhaul distillation (Heo et al., ICCV 2019) takes its margins from their weights and biases.

        Raises:
            ConfigError: the network has no such layers.
        """
        raise ConfigError(
            f"{type(self).__name__} has no BatchNorm of all channels before the ReLU of each stage"
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, 3, 32, 32)."""
        maps = StageMaps(self.taps["maps"])
        pre = StageMaps(dict(self.taps).get("pre"))
        pooled = self.taps["pooled"](self.features(images, maps, pre))
        maps.deliver()
        pre.deliver()
        return self.taps["logits"](self.get_classifier()(pooled))


def run_stages(stages: Iterable[nn.Sequential], x: Tensor, maps: StageMaps, pre: StageMaps) -> Tensor:
    """The output of stages whose blocks return their sum *before* its ReLU; adds each stage's two maps."""
    for stage in stages:
        for block in stage:
            total = block(x)
            x = F.relu(total)
        pre.add(total)
        maps.add(x)
    return x


def conv3x3(channels_in: int, channels_out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """3×3 convolution that keeps the size but for the stride, without bias."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(channels_in: int, channels_out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """1×1 convolution without bias."""
    return nn.Conv2d(channels_in, channels_out, 1, stride=stride, groups=groups, bias=False)


def global_average_pool(features: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C)."""
    return features.mean((2, 3))


def fan_out_normal_(network: nn.Module) -> None:
    """Draw all convolutions from N(0, 2 / (k·k·C_out)), He's rule for the backward pass.

    Unlike ``nn.init.kaiming_normal_`` it counts all output channels of a grouped convolution.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            nn.init.normal_(module.weight, std=sqrt(2.0 / (height * width * module.out_channels)))
