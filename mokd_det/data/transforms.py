"""DETR's augmentation as ViDT uses it (reference: ViDT's released training code), as Detectron2 augmentations.

All randomness comes from numpy's global generator, as everywhere in Detectron2; the training loader seeds it
per sample.
"""

# ruff: noqa: NPY002  (augmentations of Detectron2's kind draw from numpy's global generator)

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

from mokd_det.errors import ConfigError

__all__ = [
    "RandomChoice",
    "RandomSizeCrop",
    "ShortSideResize",
    "detr_test_augmentation",
    "detr_train_augmentation",
    "resized_shape",
]


def resized_shape(
    height: int, width: int, short_side: int, max_long_side: int | None = None, divisor: int = 16
) -> tuple[int, int]:
    """(height, width) of an image after ViDT's resize, all in pixels.

    The short side becomes ``short_side``; if the long one would exceed ``max_long_side``, the short side is
    ``round(max_long_side * short / long)`` instead, whose rounding can exceed the limit by a few pixels. Then **both**
    sides are floored to multiples of ``divisor`` (at least one; 1 turns it off), so the aspect ratio changes slightly.
    """
    short, long = sorted((height, width))
    if max_long_side is not None and long / short * short_side > max_long_side:
        short_side = max(1, round(max_long_side * short / long))
    sides = (short_side * side // short for side in (height, width))
    new_height, new_width = (max(side // divisor * divisor, divisor) for side in sides)
    return new_height, new_width


class ShortSideResize(T.Augmentation):
    """Resize to a short side drawn from a list (:func:`resized_shape`), with PIL's bilinear filter."""

    def __init__(
        self, short_sides: Sequence[int], max_long_side: int | None = None, divisor: int = 16
    ) -> None:
        """
        Args:
            short_sides: candidates in pixels, drawn with equal probability.
            max_long_side, divisor: see :func:`resized_shape`.

        Raises:
            ConfigError: no candidate, or a number that is not positive.
        """
        super().__init__()
        if not short_sides or min(short_sides) < 1:
            raise ConfigError(f"short_sides={list(short_sides)}: must be positive pixel counts, at least one")
        if divisor < 1 or (max_long_side is not None and max_long_side < 1):
            raise ConfigError(f"divisor={divisor}, max_long_side={max_long_side}: must be at least 1")
        self.short_sides = tuple(short_sides)
        self.max_long_side = max_long_side
        self.divisor = divisor

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        short_side = self.short_sides[np.random.randint(len(self.short_sides))]
        shape = resized_shape(height, width, short_side, self.max_long_side, self.divisor)
        if shape == (height, width):
            return NoOpTransform()
        return T.ResizeTransform(height, width, *shape)


class RandomSizeCrop(T.Augmentation):
    """Crop of random size at a random place.

    Width and height are drawn independently and uniformly from min_size … min(side, max_size); a side shorter
    than ``min_size`` is kept whole.
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        """
        Raises:
            ConfigError: not 1 <= min_size <= max_size.
        """
        super().__init__()
        if not 1 <= min_size <= max_size:
            raise ConfigError(f"crop sizes {min_size} to {max_size}: need 1 <= min_size <= max_size")
        self.min_size = min_size
        self.max_size = max_size

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        crop_width, left = self._draw(width)
        crop_height, top = self._draw(height)
        return T.CropTransform(left, top, crop_width, crop_height, width, height)

    def _draw(self, side: int) -> tuple[int, int]:
        size = int(np.random.randint(min(self.min_size, side), min(side, self.max_size) + 1))
        return size, int(np.random.randint(0, side - size + 1))


class RandomChoice(T.Augmentation):
    """One of several augmentation sequences, the first with probability ``first_prob``, else the second."""

    def __init__(
        self, first: Sequence[T.Augmentation], second: Sequence[T.Augmentation], first_prob: float = 0.5
    ) -> None:
        """
        Raises:
            ConfigError: ``first_prob`` is no probability.
        """
        super().__init__()
        if not 0 <= first_prob <= 1:
            raise ConfigError(f"first_prob={first_prob}: must lie in [0, 1]")
        self.first = T.AugmentationList(list(first))
        self.second = T.AugmentationList(list(second))
        self.first_prob = first_prob

    def __call__(self, aug_input: T.AugInput) -> Transform:
        chosen = self.first if np.random.uniform() < self.first_prob else self.second
        return chosen(aug_input)


def detr_train_augmentation(
    *,
    flip_prob: float = 0.5,
    short_sides: Sequence[int] = tuple(range(480, 801, 16)),
    max_long_side: int | None = 1333,
    crop_prob: float = 0.5,
    crop_short_sides: Sequence[int] = (400, 500, 600),
    crop_min_size: int = 384,
    crop_max_size: int = 600,
    divisor: int = 16,
) -> list[T.Augmentation]:
    """ViDT's training augmentation: flip, then either resize, or resize, crop and resize.

    Args:
        flip_prob: probability of the horizontal flip; 0 where left and right mean something (digits, text).
        short_sides: short sides of the resize, pixels.
        max_long_side: limit of the long side in that resize; None: no limit.
        crop_prob: probability of the branch with the crop; 0 leaves it out.
        crop_short_sides: short sides of the resize (without a limit) before the crop.
        crop_min_size, crop_max_size: smallest and largest side of the crop.
        divisor: every resize ends on multiples of it.

    Returns:
        Augmentations for :class:`mokd_det.data.DetrDatasetMapper`.

    Raises:
        ConfigError: sizes that are not positive, or a probability outside [0, 1].
    """
    for name, prob in (("flip_prob", flip_prob), ("crop_prob", crop_prob)):
        if not 0 <= prob <= 1:
            raise ConfigError(f"{name}={prob}: must lie in [0, 1]")
    augmentation: list[T.Augmentation] = [T.RandomFlip(prob=flip_prob)] if flip_prob else []
    resize = ShortSideResize(short_sides, max_long_side, divisor)
    if not crop_prob:
        return [*augmentation, resize]
    crop = [
        ShortSideResize(crop_short_sides, None, divisor),
        RandomSizeCrop(crop_min_size, crop_max_size),
        resize,
    ]
    return [*augmentation, RandomChoice(crop, [resize], first_prob=crop_prob)]


def detr_test_augmentation(
    *, short_side: int = 800, max_long_side: int | None = 1333, divisor: int = 16
) -> list[T.Augmentation]:
    """ViDT's evaluation resize; arguments as in :func:`resized_shape`."""
    return [ShortSideResize([short_side], max_long_side, divisor)]
