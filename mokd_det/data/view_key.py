"""What a training image shows, where it is one of a fixed number of views: the key under which results are kept."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from mokd_det.data.sampling import SampleKey
from mokd_det.errors import ConfigError

__all__ = ["ViewKey", "view_key"]

ViewKey = tuple[int, int, int]
"""Index of the image in the data set, its view, and a digest of the pixels."""


def view_key(key: SampleKey, image: Any) -> ViewKey:
    """The key of an augmented image, a tensor as the model gets it.

    The digest is there to notice that image and view no longer give these pixels: another data set, seed, augmentation
    or decoder.

    Raises:
        ConfigError: the mapper made no image tensor.
    """
    if not isinstance(image, Tensor):
        raise ConfigError(
            f"views need a mapper that makes a tensor 'image', not {type(image).__name__}: its pixels are the key"
        )
    assert key.view is not None  # asked for only where there are views
    digest = hashlib.blake2b(f"{image.dtype} {tuple(image.shape)}".encode(), digest_size=8)
    digest.update(image.contiguous().numpy())
    return key.record, key.view, int.from_bytes(digest.digest(), "little") >> 1
