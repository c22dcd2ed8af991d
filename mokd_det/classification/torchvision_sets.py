"""torchvision's classification data sets, from a local folder."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets
from PIL import Image

from mokd_det.classification.dataset import ImageDataset
from mokd_det.data.builtin import datasets_root
from mokd_det.errors import ConfigError, DatasetError

__all__ = ["TorchvisionImages"]

_LABEL_ATTRIBUTES = ("targets", "labels", "_labels")
_SAMPLE_ATTRIBUTES = ("samples", "_samples")
_NOT_OURS = ("root", "download", "transform", "target_transform", "transforms")


class TorchvisionImages(ImageDataset):
    """A data set class of torchvision, whose items are an image and a class number. Nothing is downloaded."""

    def __init__(
        self,
        name: str,
        root: str | os.PathLike[str] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            name: of the class, e.g. "CIFAR10".
            root: the folder that the class is given; None: :func:`~mokd_det.data.datasets_root`.
            arguments: its other ones, e.g. ``dict(train=True)`` or ``dict(split="test")``.

        Raises:
            ConfigError: torchvision has no such class, or the class no such argument.
            DatasetError: files that are missing (with the command that fetches them) or broken, or items of
                another kind.
        """
        target = _find(name)
        root = datasets_root() if root is None else Path(root).expanduser()
        arguments = dict(arguments or {})
        accepted = inspect.signature(target).parameters
        by_name = {key for key, parameter in accepted.items() if parameter.kind is not parameter.VAR_KEYWORD}
        for key in arguments:
            if key in _NOT_OURS or (key not in by_name and len(by_name) == len(accepted)):
                usable = [key for key in accepted if key in by_name and key not in _NOT_OURS]
                raise ConfigError(
                    f"torchvision.datasets.{name}: '{key}' cannot be given in arguments, only {', '.join(usable)}"
                )
        described = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        try:
            self._dataset = target(str(root), **arguments)
        # Foreign readers meet missing and broken files with any exception class.
        except Exception as error:
            more = f", {described}" if described else ""
            fetch = (
                f'fetch it with: python -c "from torchvision.datasets import {name}; '
                f'{name}({str(root)!r}{more}, download=True)"'
                if "download" in accepted
                else f"torchvision's documentation of {name} describes the files it needs below {root}"
            )
            raise DatasetError(
                f"torchvision's {name}({described}) cannot be read from {root}: {type(error).__name__}: "
                f"{' '.join(str(error).split())}; {fetch}"
            ) from error
        full_name = f"{name}({described}) in {root}"
        labels = _labels(self._dataset, full_name)
        super().__init__(full_name, _class_names(self._dataset, labels), labels)

    def read(self, index: int) -> Image.Image:
        """See :meth:`ImageDataset.read`."""
        image, label = _item(self._dataset, index, self.image_name(index))
        if label != self.labels[index]:
            raise DatasetError(
                f"{self.image_name(index)} has class {label}, but the data set's list of labels says "
                f"{self.labels[index]}"
            )
        return image.convert("RGB")

    def _add_content(self, add: Callable[[bytes], object]) -> None:
        add(self.name.encode())


def _find(name: str) -> Callable[..., Any]:
    found = {key: getattr(torchvision.datasets, key) for key in torchvision.datasets.__all__}
    classes = [key for key, target in found.items() if "root" in inspect.signature(target).parameters]
    if name not in classes:
        near = difflib.get_close_matches(name, classes, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(classes)}"
        raise ConfigError(f"torchvision.datasets has no data set '{name}' with a root folder; {hint}")
    return found[name]


def _item(dataset: Any, index: int, name: str) -> tuple[Image.Image, int]:
    try:
        item = dataset[index]
    # As above
    except Exception as error:
        raise DatasetError(f"{name} cannot be read: {type(error).__name__}: {error}") from error
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Image.Image):
        image, label = item
        if isinstance(label, (int, np.integer)):
            return image, int(label)
    raise DatasetError(f"{name} is no pair of an image and a class number; only classification can use it")


def _labels(dataset: Any, name: str) -> np.ndarray:
    """All class numbers, from the data set's own list if it has one, else from its items."""
    lists = (getattr(dataset, attribute, None) for attribute in _LABEL_ATTRIBUTES)
    found: Any = next((labels for labels in lists if labels is not None), None)
    for attribute in _SAMPLE_ATTRIBUTES:
        samples = getattr(dataset, attribute, None)
        if found is None and samples is not None:
            found = [sample[1] for sample in samples if isinstance(sample, Sequence) and len(sample) == 2]
    if found is None or len(found) != len(dataset):
        found = [_item(dataset, i, f"{name}, image {i}")[1] for i in range(len(dataset))]
    try:
        return np.asarray(found).astype(np.int64, casting="same_kind").reshape(len(dataset))
    except (TypeError, ValueError):
        raise DatasetError(f"{name}: its labels are not one class number per image") from None


def _class_names(dataset: Any, labels: np.ndarray) -> list[str]:
    for attribute in ("classes", "categories"):
        names = getattr(dataset, attribute, None)
        if isinstance(names, (list, tuple)) and len(names) and len(names) > labels.max(initial=-1):
            return [str(name[0]) if isinstance(name, tuple) else str(name) for name in names]
    return [str(number) for number in range(int(labels.max(initial=-1)) + 1)]
