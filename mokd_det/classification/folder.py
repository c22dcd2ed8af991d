"""Images in one folder per class, as torchvision's and timm's ImageFolder have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mokd_det.classification.dataset import ImageDataset
from mokd_det.data.image_file import read_image
from mokd_det.errors import DatasetError

__all__ = ["IMAGE_SUFFIXES", "ImageFolder"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder(ImageDataset):
    """``root/<class>/…/<image>``: every sub-folder is a class, numbered in the order of their names."""

    def __init__(self, root: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> None:
        """``class_names`` are the sub-folders to use, in the order of the classes' numbers; None: all, sorted.

        Raises:
            DatasetError: a folder that is missing or has another layout, a class without images.
        """
        root = Path(root).expanduser()
        found = _class_folders(root)
        names = found if class_names is None else [str(name) for name in class_names]
        missing = [name for name in names if name not in found]
        if missing:
            raise DatasetError(f"{root} has no folder '{missing[0]}' for the class of that name")
        files: list[tuple[str, int]] = []
        counts: list[int] = []
        for name in names:
            of_class = _image_files(root, name)
            if not of_class:
                raise DatasetError(
                    f"the class folder {root / name} has no images ({', '.join(IMAGE_SUFFIXES)}); add some or "
                    "remove it"
                )
            files += of_class
            counts.append(len(of_class))
        self._root = root
        # One array of bytes: workers share it, where a list of texts would be copied by its counters.
        self._paths = np.array([os.fsencode(path) for path, _ in files], dtype=np.bytes_)
        self._sizes = np.array([size for _, size in files], dtype=np.int64)
        super().__init__(str(root), names, np.repeat(np.arange(len(names)), counts))

    def read(self, index: int) -> Image.Image:
        """See :meth:`ImageDataset.read`; EXIF orientation is applied."""
        path = self.image_name(index)
        return Image.fromarray(read_image(path, f"image {path}"))

    def image_name(self, index: int) -> str:
        """The file's path."""
        return str(self._root / os.fsdecode(self._paths[index].item()))

    def _add_content(self, add: Callable[[bytes], object]) -> None:
        add(b"\0".join(self._paths.tolist()))
        add(self._sizes.astype("<i8").tobytes())


def _layout(root: Path) -> str:
    return f"the layout is one folder per class: {root}/<class>/<image>.jpg, for instance {root}/cat/001.jpg"


def _class_folders(root: Path) -> list[str]:
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise DatasetError(f"image folder {root} does not exist; {_layout(root)}") from None
    except OSError as error:
        raise DatasetError(f"image folder {root} cannot be read: {error}; {_layout(root)}") from error
    folders = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not folders:
        images = sum(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries)
        what = f"has {images} images but no folders in it" if images else "is empty"
        raise DatasetError(f"image folder {root} {what}; {_layout(root)}")
    return folders


def _image_files(root: Path, name: str) -> list[tuple[str, int]]:
    """(path below the root, bytes) of every image of a class, sorted by path."""
    files = []
    for folder, _, file_names in os.walk(root / name, followlinks=True):
        for file_name in file_names:
            if file_name.lower().endswith(IMAGE_SUFFIXES) and not file_name.startswith("."):
                path = os.path.join(folder, file_name)
                files.append((os.path.relpath(path, root), os.stat(path).st_size))
    return sorted(files)
