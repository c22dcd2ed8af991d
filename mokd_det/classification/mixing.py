"""Mixup and CutMix by timm, drawn from the batch's own random numbers, and smoothed labels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from timm.data import Mixup
from torch import Tensor

from mokd_det.data.sampling import batch_rng
from mokd_det.errors import ConfigError

__all__ = ["LabelMixer"]

_NOT_OURS = ("self", "label_smoothing", "num_classes", "multi_label")


class LabelMixer:
    """Makes a batch's targets from its labels and, with mixing, mixes its images.

    The targets are the labels themselves, (B,) int64, if there is nothing to smooth or to mix; else distributions
    (B, K): with smoothing ε the label's own class has 1 - ε + ε / K and every other ε / K, and a mixed image
    has the mean of two such rows, weighted as its pixels are.
    """

    def __init__(
        self,
        num_classes: int,
        batch_size: int,
        seed: int,
        mixup: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        """
        Args:
            num_classes: K.
            batch_size: images per batch of this process.
            mixup: arguments of ``timm.data.Mixup`` but for the number of classes and the smoothing:
                ``mixup_alpha``, ``cutmix_alpha``, ``cutmix_minmax``, ``prob``, ``switch_prob``, ``mode``,
                ``correct_lam``. None: images stay as they are.
            label_smoothing: ε, 0 to below 1.

        Raises:
            ConfigError: an argument that ``Mixup`` does not have, nothing to mix by, an odd batch, which
                cannot be mixed (the i-th image is mixed with the i-th from the end), or a smoothing out of range.
        """
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing={label_smoothing}: must be 0 or more and below 1")
        self._num_classes = num_classes
        self._smoothing = float(label_smoothing)
        self._seed = seed
        self._mixup = None
        if mixup is None:
            return
        known = [name for name in inspect.signature(Mixup.__init__).parameters if name not in _NOT_OURS]
        unknown = [str(name) for name in mixup if name not in known]
        if unknown:
            raise ConfigError(f"mixup has no '{unknown[0]}'; it takes {', '.join(known)}")
        settings = {"mixup_alpha": 1.0, "cutmix_alpha": 0.0, "cutmix_minmax": None, **mixup}
        by_area = settings["cutmix_minmax"]
        settings["cutmix_minmax"] = None if by_area is None else tuple(by_area)
        if by_area is None and not (settings["mixup_alpha"] > 0 or settings["cutmix_alpha"] > 0):
            raise ConfigError(
                f"mixup={dict(mixup)} mixes nothing: give a mixup_alpha or cutmix_alpha above 0, or mixup=None"
            )
        if settings.get("mode", "batch") not in ("batch", "pair", "elem"):
            raise ConfigError(f"mixup.mode is '{settings['mode']}'; it must be 'batch', 'pair' or 'elem'")
        if batch_size % 2:
            raise ConfigError(
                f"mixup needs an even number of images per process, not {batch_size}: the i-th image is mixed with "
                "the i-th from the end, and the middle one would be left alone; change total_batch_size"
            )
        self._mixup = Mixup(num_classes=num_classes, label_smoothing=self._smoothing, **settings)

    def __call__(self, images: Tensor, labels: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Images and targets of a batch.

        Args:
            images: (B, 3, H, W); may be overwritten.
            labels: (B,) int64.
            position: of the batch's first sample; with the seed it decides how the batch is mixed.

        Returns:
            images (B, 3, H, W); targets (B,) int64 or (B, K) float32.
        """
        if self._mixup is not None:
            with batch_rng(self._seed, position):
                return self._mixup(images, labels)
        if not self._smoothing:
            return images, labels
        rest = self._smoothing / self._num_classes
        targets = torch.full((len(labels), self._num_classes), rest)
        return images, targets.scatter_(1, labels[:, None], 1.0 - self._smoothing + rest)
