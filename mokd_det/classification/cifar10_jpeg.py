"""A part of CIFAR-10 (Krizhevsky 2009) as JPEG files, which ``python -m mokd_det fetch cifar10_jpeg`` brings."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from mokd_det.classification.folder import ImageFolder
from mokd_det.classification.subset import Subset, check_split, split_by_class
from mokd_det.data.builtin import datasets_root
from mokd_det.errors import ConfigError, DatasetError

__all__ = ["Cifar10Jpeg"]

SPLITS = ("train", "val", "test")
_SIDE = 32
# The published training images have no validation part: one in five of each class becomes it.
_SHARES = {"train": 0.8, "val": 0.2}


class Cifar10Jpeg(Subset):
    """train 12,000 and val 3,000 of 15,000 published training images, test 3,000 of the published test images.

    Encoded anew as JPEG, hence not comparable with published numbers. A decoded image stays in memory.
    """

    def __init__(self, split: str, root: str | os.PathLike[str] | None = None, size: int = _SIDE) -> None:
        """
        Args:
            size: pixels of a side, 1 to 32; below 32 the means of the pixels that become one.
            root: folder of ``train`` and ``test``; None: ``cifar10_jpeg`` below
                :func:`~mokd_det.data.datasets_root`.

        Raises:
            ConfigError: an unknown split, or another size.
            DatasetError: the folder is missing (with the command that fetches it) or has another layout.
        """
        check_split(split, SPLITS, "CIFAR-10 (JPEG)")
        if not 1 <= size <= _SIDE:
            raise ConfigError(f"CIFAR-10 (JPEG): size={size!r} must be 1 to {_SIDE}, the side of its images")
        folder = datasets_root() / "cifar10_jpeg" if root is None else Path(root)
        if not folder.is_dir():
            raise DatasetError(
                f"{folder} does not exist; fetch it with: python -m mokd_det fetch cifar10_jpeg"
            )
        self.size = size
        self._decoded: dict[int, Image.Image] = {}
        images = _folder(folder / ("test" if split == "test" else "train"))
        positions = np.arange(len(images))
        if split != "test":
            positions = split_by_class(images.labels, _SHARES)[split]
        super().__init__(f"CIFAR-10 (JPEG, {split})", images, positions)

    def read(self, index: int) -> Image.Image:
        """See :meth:`ImageDataset.read`; not to be changed in place."""
        if index not in self._decoded:
            image = super().read(index)
            if image.size != (self.size, self.size):
                image = image.resize((self.size, self.size), Image.Resampling.BOX)
            self._decoded[index] = image
        return self._decoded[index]

    def _add_content(self, add: Callable[[bytes], object]) -> None:
        super()._add_content(add)
        add(str(self.size).encode())


@cache
def _folder(path: Path) -> ImageFolder:
    """Listed once for all splits and for the evaluator, which takes longer than to read what a run needs of it."""
    return ImageFolder(path)
