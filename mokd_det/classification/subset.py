"""Parts of data sets: disjoint splits, and a few images of each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from mokd_det.classification.dataset import ImageDataset
from mokd_det.errors import ConfigError, DatasetError

__all__ = ["FewPerClass", "Subset", "check_split", "split_by_class"]


def split_by_class(labels: np.ndarray, shares: Mapping[str, float], seed: int = 0) -> dict[str, np.ndarray]:
    """Divide samples with these labels (N,) at random so that every part has the same share of each class, up to
    rounding. The shares of the parts, by name, add up to 1; of each part its ascending positions are returned.

    Raises:
        ValueError: the shares do not add up to 1.
    """
    ends = np.cumsum(list(shares.values()))
    if abs(ends[-1] - 1.0) > 1e-9:
        raise ValueError(f"the shares {dict(shares)} must add up to 1")
    generator = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in shares}
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(ends[:-1] * len(members)).astype(int)
        for name, chosen in zip(shares, np.split(members, cuts), strict=True):
            parts[name].append(chosen)
    return {name: np.sort(np.concatenate(chosen)) for name, chosen in parts.items()}


def check_split(split: str, known: tuple[str, ...], name: str) -> None:
    """
    Raises:
        ConfigError: a split that the data set does not have, naming those it has.
    """
    if split not in known:
        raise ConfigError(f"{name} has no split '{split}'; it has {', '.join(known)}")


class Subset(ImageDataset):
    """The images at some positions (N,) of a data set."""

    def __init__(self, name: str, dataset: ImageDataset, positions: np.ndarray) -> None:
        self._dataset = dataset
        self._positions = positions
        super().__init__(name, dataset.class_names, dataset.labels[positions])

    def read(self, index: int) -> Image.Image:
        """See :meth:`ImageDataset.read`."""
        return self._dataset.read(int(self._positions[index]))

    def image_name(self, index: int) -> str:
        """See :meth:`ImageDataset.image_name`."""
        return self._dataset.image_name(int(self._positions[index]))

    def _add_content(self, add: Callable[[bytes], object]) -> None:
        add(self._dataset.fingerprint().encode())
        add(self._positions.astype("<i8").tobytes())


class FewPerClass(Subset):
    """The same number of images of each class, drawn once from a larger data set."""

    def __init__(self, dataset: ImageDataset, per_class: int, seed: int = 0) -> None:
        """A larger number with the same seed keeps the images of a smaller one.

        Raises:
            ConfigError: fewer than one image per class.
            DatasetError: a class with fewer images.
        """
        if per_class < 1:
            raise ConfigError(f"per_class={per_class}: must be 1 or more")
        counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
        if counts.min() < per_class:
            poorest = dataset.class_names[int(counts.argmin())]
            raise DatasetError(
                f"{dataset.name} has {counts.min()} images of class '{poorest}', fewer than per_class={per_class}"
            )
        order = np.random.default_rng(seed).permutation(len(dataset))
        chosen = [order[dataset.labels[order] == label][:per_class] for label in range(dataset.num_classes)]
        super().__init__(f"{dataset.name} ({per_class} per class)", dataset, np.sort(np.concatenate(chosen)))
