"""What a classification data set is to the loaders and the evaluator."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from mokd_det.errors import DatasetError

__all__ = ["ArrayDataset", "ImageDataset"]


class ImageDataset(ABC):
    """N images, each of one of K classes.

    Attributes:
        name: what messages call the data set.
        class_names: of the K classes, in the order of their numbers.
        labels: (N,) int64, the images' classes.
    """

    def __init__(self, name: str, class_names: Sequence[str], labels: Sequence[int] | np.ndarray) -> None:
        """
        Raises:
            DatasetError: no image, two classes of one name, or a label that no class has.
        """
        self.name = name
        self.class_names = tuple(str(class_name) for class_name in class_names)
        self.labels = np.asarray(labels, dtype=np.int64)
        if not len(self.labels):
            raise DatasetError(f"{name} has no images")
        for number, class_name in enumerate(self.class_names):
            if class_name in self.class_names[:number]:
                raise DatasetError(f"{name} has two classes called '{class_name}'")
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= self.num_classes))
        if len(wrong):
            raise DatasetError(
                f"{self.image_name(int(wrong[0]))} has class {self.labels[wrong[0]]}, but there are "
                f"{self.num_classes} classes, 0 to {self.num_classes - 1}"
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """The image at a position, of mode "RGB" and any size.

        Raises:
            DatasetError: an image that is missing or broken, by name.
        """

    def image_name(self, index: int) -> str:
        """What messages call the image at a position."""
        return f"{self.name}, image {index}"

    def fingerprint(self) -> str:
        """A digest that changes when the data set does, as far as this shows without decoding its images."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        self._add_content(digest.update)
        return digest.hexdigest()

    @abstractmethod
    def _add_content(self, add: Callable[[bytes], object]) -> None:
        """Hand what tells these images from others to the digest."""


class ArrayDataset(ImageDataset):
    """Images that are held in memory: uint8, (N, H, W) in grey or (N, H, W, 3) in RGB."""

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        images: np.ndarray,
    ) -> None:
        """
        Raises:
            DatasetError: as :class:`ImageDataset`, or images of another type, shape or number.
        """
        super().__init__(name, class_names, labels)
        is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
        if images.dtype != np.uint8 or not is_image or len(images) != len(self.labels):
            raise DatasetError(
                f"{name}: the images are {images.dtype} {images.shape} for {len(self.labels)} labels, not uint8 "
                "(N, H, W) or (N, H, W, 3)"
            )
        self.images = images

    def read(self, index: int) -> Image.Image:
        """See :meth:`ImageDataset.read`."""
        return Image.fromarray(self.images[index]).convert("RGB")

    def _add_content(self, add: Callable[[bytes], object]) -> None:
        add(str(self.images.shape).encode())
        add(np.ascontiguousarray(self.images).tobytes())
