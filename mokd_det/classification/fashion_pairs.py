"""Fashion-MNIST in the form of CIFAR: padded to 32 pixels, and 100 classes made of pairs of its items."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from mokd_det.classification.dataset import ArrayDataset
from mokd_det.classification.fashion_mnist import FASHION_CLASSES, FashionMNIST
from mokd_det.classification.subset import check_split
from mokd_det.errors import ConfigError, DatasetError

__all__ = ["FashionMNIST32", "FashionPairs"]

SIDE = 32
_PADDING = 2
PER_CLASS = {"train": 500, "val": 50, "test": 100}
_PAIRING_SEED = 0


class FashionMNIST32(ArrayDataset):
    """Fashion-MNIST with two black pixels on each side, 32 × 32."""

    def __init__(self, split: str, root: str | os.PathLike[str] | None = None, size: int = SIDE) -> None:
        """See :class:`~mokd_det.classification.fashion_mnist.FashionMNIST`; ``size`` are the pixels of a side: of 16 or
        8 each is the mean of those that it stands for.

        Raises:
            ConfigError: another size.
        """
        if size not in (32, 16, 8):
            raise ConfigError(f"Fashion-MNIST padded to 32 pixels: size={size} must be 32, 16 or 8")
        source = FashionMNIST(split, root)
        images = np.pad(source.images, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING)))
        if size < SIDE:
            blocks = images.reshape(len(images), size, SIDE // size, size, SIDE // size)
            images = np.rint(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)
        super().__init__(source.name, source.class_names, source.labels, images)


class FashionPairs(ArrayDataset):
    """Two items side by side, 32 × 32; class 10·left + right, "bag and dress" for instance.

    As many images of each of the 100 classes, and of CIFAR-100's number by default: 50,000 to train on, 10,000 to
    test on (and 5,000 for choices). The items of a split come from that split of Fashion-MNIST alone, so no item
    is shared between two splits. Within one, an item stands at most once on the left and once on the right.
    A mirrored image belongs to another class: do not flip these images.
    """

    def __init__(
        self, split: str, per_class: int | None = None, root: str | os.PathLike[str] | None = None
    ) -> None:
        """
        Args:
            split: "train", "val" (for choices) or "test" (for reports).
            per_class: images of each of the 100 classes; None: 500, 50 and 100. A smaller number gives some of
                the images of a larger one.
            root: of Fashion-MNIST.

        Raises:
            ConfigError: an unknown split, or more or fewer images than there can be.
            DatasetError: Fashion-MNIST's files are missing (with what to do), damaged or too small.
        """
        check_split(split, tuple(PER_CLASS), "the data set of fashion pairs")
        most = PER_CLASS[split]
        count = most if per_class is None else per_class
        if not 1 <= count <= most:
            raise ConfigError(f"fashion pairs ({split}): per_class={per_class} must be 1 to {most}")
        source = FashionMNIST(split, root)
        fewest = int(np.bincount(source.labels, minlength=len(FASHION_CLASSES)).min())
        if fewest < len(FASHION_CLASSES) * most:
            raise DatasetError(
                f"{source.name} has only {fewest} items of a class; the pairs need {len(FASHION_CLASSES) * most}"
            )
        left, right = _pairing(source.labels, most, count)
        used, places = np.unique((left, right), return_inverse=True)
        half = (SIDE // 2, SIDE)
        resized = [
            Image.fromarray(image).resize(half, Image.Resampling.BILINEAR) for image in source.images[used]
        ]
        narrow = np.stack([np.asarray(image) for image in resized])
        images = np.concatenate([narrow[side] for side in places.reshape(2, -1)], axis=2)
        super().__init__(
            f"fashion pairs ({split})",
            [f"{a} and {b}" for a in FASHION_CLASSES for b in FASHION_CLASSES],
            10 * source.labels[left] + source.labels[right],
            images,
        )


def _pairing(labels: np.ndarray, most: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the left and the right items, class after class.

    The items of a class are dealt once to its ten partners as left ones, and once as right ones.
    """
    classes = len(FASHION_CLASSES)
    generator = np.random.default_rng(_PAIRING_SEED)
    dealt = np.empty((2, classes, classes, most), np.int64)
    for side in range(2):
        for label in range(classes):
            members = generator.permutation(np.flatnonzero(labels == label))
            dealt[side, label] = members[: classes * most].reshape(classes, most)
    # dealt[1] has the right item's class first
    left, right = dealt[0], dealt[1].transpose(1, 0, 2)
    return left[:, :, :count].reshape(-1), right[:, :, :count].reshape(-1)
