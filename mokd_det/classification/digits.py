"""scikit-learn's handwritten digits: 1,797 real images of 8 × 8 pixels, bundled with that package."""

from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mokd_det.classification.dataset import ArrayDataset
from mokd_det.classification.subset import check_split, split_by_class
from mokd_det.errors import ConfigError

__all__ = ["DigitImages"]

# The test part is the largest that leaves enough to train on: with 600 images the standard error of an accuracy of
# 90 % is 1.2 points.
_SHARES = {"train": 1 / 2, "val": 1 / 6, "test": 1 / 3}
_BRIGHTEST = 16


class DigitImages(ArrayDataset):
    """The digits enlarged, in three disjoint parts of the same class shares: "train" 898, "val" (for choices) 300,
    "test" (for reports) 599."""

    def __init__(self, split: str, size: int = 32) -> None:
        """``size`` are the pixels of both sides, after a bicubic enlargement.

        Raises:
            ConfigError: an unknown split, or a size below the original 8.
        """
        name = f"digits ({split})"
        check_split(split, tuple(_SHARES), "the digits data set")
        if size < 8:
            raise ConfigError(f"{name}: size={size}: must be 8 or more")
        bunch = load_digits()
        chosen = split_by_class(bunch.target, _SHARES)[split]
        images = np.rint(bunch.images[chosen] * (255 / _BRIGHTEST)).astype(np.uint8)
        enlarged = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in images]
        super().__init__(
            name,
            [str(digit) for digit in bunch.target_names],
            bunch.target[chosen],
            np.stack([np.asarray(image) for image in enlarged]),
        )
