"""The CIFAR recipe's augmentation: zero-padding, random crop, mirroring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mokd_det.errors import ConfigError, DatasetError

__all__ = ["SmallImageTransform"]


class SmallImageTransform:
    """A normalised tensor of a small image.

    In training the image is padded with black by ``padding`` pixels on each side, a window of its own size is cut
    at a random place, and one image in two is mirrored. The random numbers are torch's global generator's, which
    the training loader seeds for each image.
    """

    def __init__(
        self,
        is_train: bool,
        mean: Sequence[float],
        std: Sequence[float],
        size: int = 32,
        padding: int = 4,
        flip: bool = True,
    ) -> None:
        """
        Args:
            is_train: whether to augment.
            mean, std: of red, green and blue, pixels in 0..1.
            size: pixels of both sides that the images must have.
            padding: pixels; 0: no random crop.
            flip: whether to mirror; off where left and right matter.

        Raises:
            ConfigError: not three channels, a standard deviation that is not positive, a negative padding.
        """
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or padding < 0:
            raise ConfigError(
                f"mean={list(mean)} and std={list(std)} must be three numbers each, std above 0, padding={padding} not "
                "negative"
            )
        self.is_train = is_train
        self.size = size
        self.padding = padding
        self.flip = flip
        # plain numbers: a configuration's list objects would travel to the loader's workers
        self._scale = torch.tensor([1 / (255 * float(value)) for value in std]).view(3, 1, 1)
        self._shift = torch.tensor([float(m) / float(s) for m, s in zip(mean, std)]).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image as (3, size, size) float32.

        Raises:
            DatasetError: an image of another size.
        """
        if image.size != (self.size, self.size):
            raise DatasetError(
                f"an image of {image.width} × {image.height} pixels; this transform takes {self.size} × {self.size}"
            )
        pixels = np.asarray(image)
        if self.is_train:
            pixels = self._augment(pixels)
        # a copy: a mirrored array has a negative stride, and an image's own cannot be written to
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()) * self._scale - self._shift

    def _augment(self, pixels: np.ndarray) -> np.ndarray:
        if self.padding:
            top, left = torch.randint(2 * self.padding + 1, (2,)).tolist()
            inside = slice(self.padding, self.padding + self.size)
            padded = np.zeros((self.size + 2 * self.padding, self.size + 2 * self.padding, 3), np.uint8)
            padded[inside, inside] = pixels
            pixels = padded[top : top + self.size, left : left + self.size]
        if self.flip and torch.rand(()).item() < 0.5:
            pixels = pixels[:, ::-1]
        return pixels
