"""CIFAR-10 and CIFAR-100 from the files of their authors' "python version", read without executing anything in them.

Those files are pickles, which can run code when loaded. Nothing but arrays, lists, numbers and text is built here.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mokd_det.classification.dataset import ArrayDataset
from mokd_det.classification.subset import check_split
from mokd_det.data.builtin import datasets_root
from mokd_det.errors import DatasetError, first_line

__all__ = ["Cifar10", "Cifar100"]

_SIDE = 32


class _Layout(NamedTuple):
    title: str
    folder: str
    archive: str
    files: dict[str, tuple[str, ...]]
    labels: str
    meta_file: str
    class_names: str
    num_classes: int


_CIFAR10 = _Layout(
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    files={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    labels="labels",
    meta_file="batches.meta",
    class_names="label_names",
    num_classes=10,
)
_CIFAR100 = _Layout(
    title="CIFAR-100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    files={"train": ("train",), "test": ("test",)},
    labels="fine_labels",
    meta_file="meta",
    class_names="fine_label_names",
    num_classes=100,
)


class Cifar10(ArrayDataset):
    """50,000 images to train on and 10,000 to test on, 32 × 32, 10 classes."""

    def __init__(self, split: str, root: str | os.PathLike[str] | None = None) -> None:
        """
        Args:
            split: "train" or "test".
            root: folder that holds ``cifar-10-batches-py``; None: :func:`~mokd_det.data.datasets_root`.

        Raises:
            DatasetError: a file is missing (with what to do), broken, unsafe or of another content.
            ConfigError: an unknown split.
        """
        super().__init__(*_load(_CIFAR10, split, root))


class Cifar100(ArrayDataset):
    """The 100 fine classes: 50,000 images to train on and 10,000 to test on, 32 × 32."""

    def __init__(self, split: str, root: str | os.PathLike[str] | None = None) -> None:
        """
        Args:
            split: "train" or "test".
            root: folder that holds ``cifar-100-python``; None: :func:`~mokd_det.data.datasets_root`.

        Raises:
            DatasetError: a file is missing (with what to do), broken, unsafe or of another content.
            ConfigError: an unknown split.
        """
        super().__init__(*_load(_CIFAR100, split, root))


def _load(
    layout: _Layout, split: str, root: str | os.PathLike[str] | None
) -> tuple[str, list[str], list[int], np.ndarray]:
    """Name, class names, labels and images (N, 32, 32, 3)."""
    check_split(split, tuple(layout.files), layout.title)
    folder = (datasets_root() if root is None else Path(root).expanduser()) / layout.folder
    if not folder.is_dir():
        raise DatasetError(
            f"{layout.title} is not at '{folder}': download {layout.archive} from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html and unpack it with: "
            f"mkdir -p '{folder.parent}' && tar -xzf {layout.archive} -C '{folder.parent}'"
        )
    meta = folder / layout.meta_file
    names = _entry(meta, _read(meta), layout.class_names, list)
    if len(names) != layout.num_classes:
        raise DatasetError(f"'{meta}' names {len(names)} classes; {layout.title} has {layout.num_classes}")
    images: list[np.ndarray] = []
    labels: list[int] = []
    for file in (folder / name for name in layout.files[split]):
        content = _read(file)
        data, own = (_entry(file, content, *entry) for entry in (("data", np.ndarray), (layout.labels, list)))
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * _SIDE**2 or len(own) != len(data):
            raise DatasetError(
                f"'{file}' has data {data.dtype} {data.shape} for {len(own)} labels; it should be uint8 (N, 3072)"
            )
        if not all(isinstance(label, int) for label in own):
            raise DatasetError(f"'{file}': {layout.labels} must be whole numbers")
        # planes of red, green and blue
        images.append(data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))
        labels += own
    return f"{layout.title} ({split})", names, labels, np.ascontiguousarray(np.concatenate(images))


def _entry(file: Path, content: dict[str, Any], key: str, kind: type) -> Any:
    if not isinstance(content.get(key), kind):
        raise DatasetError(
            f"'{file}' has no {kind.__name__} '{key}'; it holds {', '.join(map(repr, content))}"
        )
    return content[key]


def _read(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            # Python 2 wrote the files: its strings, and the arrays' bytes, are Latin-1 by convention
            content = _ArraysOnly(stream, encoding="latin1").load()
    except FileNotFoundError as error:
        raise DatasetError(f"'{file}' is missing; unpack the archive again") from error
    except _Refused as error:
        raise DatasetError(f"'{file}' is refused: {error}, which could run code when loaded") from error
    except (OSError, EOFError, pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError) as error:
        reason = first_line(error)
        raise DatasetError(f"'{file}' cannot be read: broken or not CIFAR's pickle ({reason})") from error
    if not isinstance(content, dict):
        raise DatasetError(f"'{file}' holds a {type(content).__name__}, not a dict")
    return content


class _Refused(pickle.UnpicklingError):
    """The pickle asks for something that is no data."""


def _encode(text: str, encoding: str) -> bytes:
    # how Python 3 writes bytes into pickles of Python 2's protocol
    if encoding != "latin1":
        raise _Refused(f"it encodes text as {encoding}")
    return text.encode("latin1")


def _array_builders() -> dict[tuple[str, str], Any]:
    reconstruct = np.empty(0).__reduce__()[0]
    from_buffer = np.empty(1).__reduce_ex__(5)[0]
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = reconstruct
        allowed[f"{core}.numeric", "_frombuffer"] = from_buffer
    return allowed


class _ArraysOnly(pickle.Unpickler):
    """Builds plain values and numpy arrays, and refuses everything else."""

    _ALLOWED = _array_builders()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"it holds a Python object ({module}.{name})") from None
