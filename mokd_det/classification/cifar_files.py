"""CIFAR-10 and CIFAR-100 as torchvision reads them; it checks the files before anything in them is unpickled."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from mokd_det.classification.dataset import ArrayDataset
from mokd_det.classification.subset import check_split
from mokd_det.data.builtin import datasets_root
from mokd_det.errors import DatasetError

__all__ = ["Cifar10", "Cifar100"]


class Cifar10(ArrayDataset):
    """50,000 images to train on and 10,000 to test on, 32 × 32, 10 classes."""

    def __init__(self, split: str, root: str | os.PathLike[str] | None = None) -> None:
        """The ``root`` holds ``cifar-10-batches-py``; None: :func:`~mokd_det.data.datasets_root`.

        Raises:
            DatasetError: a file is missing or not the published one (with what to do).
            ConfigError: an unknown split.
        """
        super().__init__(*_load(CIFAR10, "CIFAR-10", split, root))


class Cifar100(ArrayDataset):
    """The 100 fine classes: 50,000 images to train on and 10,000 to test on, 32 × 32."""

    def __init__(self, split: str, root: str | os.PathLike[str] | None = None) -> None:
        """As :class:`Cifar10`, from ``cifar-100-python``."""
        super().__init__(*_load(CIFAR100, "CIFAR-100", split, root))


def _load(
    kind: type[CIFAR10], title: str, split: str, root: str | os.PathLike[str] | None
) -> tuple[str, list[str], list[int], np.ndarray]:
    """Name, class names, labels and images (N, 32, 32, 3)."""
    check_split(split, ("train", "test"), title)
    folder = (datasets_root() if root is None else Path(root).expanduser()) / kind.base_folder
    if not folder.is_dir():
        raise DatasetError(
            f"{title} is not at '{folder}': download {kind.filename} from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html and unpack it with: "
            f"mkdir -p '{folder.parent}' && tar -xzf {kind.filename} -C '{folder.parent}'"
        )
    try:
        data = kind(str(folder.parent), train=split == "train")
    except RuntimeError as error:
        # torchvision says that something is wrong, not which file.
        for name, digest in (*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])):
            file = folder / name
            if not check_integrity(str(file), digest):
                what = f"is not the published file, whose MD5 is {digest}" if file.is_file() else "is missing"
                raise DatasetError(f"'{file}' {what}; unpack {kind.filename} again") from error
        raise
    return f"{title} ({split})", data.classes, data.targets, data.data
