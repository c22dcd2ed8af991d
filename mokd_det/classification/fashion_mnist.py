"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747): 70,000 grey photographs of clothes, 28 × 28."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from mokd_det.classification.dataset import ArrayDataset
from mokd_det.classification.idx_file import read_idx
from mokd_det.classification.subset import check_split, split_by_class
from mokd_det.data.builtin import datasets_root
from mokd_det.errors import DatasetError

__all__ = ["FASHION_CLASSES", "FashionMNIST"]

FASHION_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
SPLITS = ("train", "val", "test")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its files."""

# The published training set has no validation part: one image in twelve of each class becomes it.
_SHARES = {"train": 11 / 12, "val": 1 / 12}
_SIDE = 28


class FashionMNIST(ArrayDataset):
    """train 55,000 and val 5,000 images of the published training set, test the published 10,000."""

    def __init__(self, split: str, root: str | os.PathLike[str] | None = None) -> None:
        """
        Args:
            split: "train", "val" (for choices) or "test" (for reports).
            root: folder of the four published ``.gz`` files; None: ``fashion-mnist`` below
                :func:`~mokd_det.data.datasets_root`, else where Debian's package puts them.

        Raises:
            ConfigError: an unknown split.
            DatasetError: files that are missing (with what to do) or damaged.
        """
        check_split(split, SPLITS, "Fashion-MNIST")
        folder = _find(root)
        kind = "t10k" if split == "test" else "train"
        image_file, label_file = (
            folder / f"{kind}-{what}.gz" for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        images, labels = _read(image_file, 3), _read(label_file, 1)
        if images.shape[1:] != (_SIDE, _SIDE):
            raise DatasetError(f"{image_file}: images of {images.shape[1:]} pixels, not ({_SIDE}, {_SIDE})")
        if len(images) != len(labels):
            raise DatasetError(f"{image_file} has {len(images)} images, {label_file} {len(labels)} labels")
        if len(labels) and labels.max() >= len(FASHION_CLASSES):
            wrong = int(np.flatnonzero(labels >= len(FASHION_CLASSES))[0])
            raise DatasetError(f"{label_file}: label {wrong} is {labels[wrong]}, not 0 to 9")
        if split != "test":
            chosen = split_by_class(labels, _SHARES)[split]
            images, labels = images[chosen], labels[chosen]
        super().__init__(f"Fashion-MNIST ({split})", FASHION_CLASSES, labels, images)


def _read(path: Path, dimensions: int) -> np.ndarray:
    """The array of a file, unpacked once for the splits and the evaluator of a process; read-only."""
    state = path.stat() if path.is_file() else None
    return _read_state(path, dimensions, state and (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=4)
def _read_state(path: Path, dimensions: int, state: tuple[int, int] | None) -> np.ndarray:
    return read_idx(path, dimensions)


def _find(root: str | os.PathLike[str] | None) -> Path:
    own = datasets_root() / "fashion-mnist"
    places = [own, DEBIAN_FOLDER] if root is None else [Path(root)]
    for place in places:
        if place.is_dir():
            return place
    raise DatasetError(
        f"Fashion-MNIST is not in {' or '.join(map(str, places))}. On Debian and Ubuntu install it with: "
        "sudo apt-get install dataset-fashion-mnist. Elsewhere put the four published files, "
        "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz, into "
        f"{places[0]}"
    )
