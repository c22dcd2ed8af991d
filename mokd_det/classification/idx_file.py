"""The IDX format of MNIST and its kin: a big-endian header with the shape, then the values."""

from __future__ import annotations

import gzip
import os
import zlib
from math import prod
from pathlib import Path

import numpy as np

from mokd_det.errors import DatasetError

__all__ = ["read_idx"]

_UNSIGNED_BYTE = 0x08


def read_idx(path: str | os.PathLike[str], dimensions: int) -> np.ndarray:
    """The array in a file of unsigned bytes, uint8 and read-only.

    Args:
        path: of the file, packed by gzip (``.gz``) or not.
        dimensions: of the array that it must hold.

    Raises:
        DatasetError: a file that is missing, cannot be read or unpacked, is not IDX, holds something else, or
            is shorter or longer than its header says.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DatasetError(f"{path} is no IDX file: {len(content)} bytes, less than a header")
    zero, kind, found = int.from_bytes(content[:2], "big"), content[2], content[3]
    if zero or kind != _UNSIGNED_BYTE or found != dimensions:
        raise DatasetError(
            f"{path} is no IDX file of bytes in {dimensions} dimensions: it starts with 0x{content[:4].hex()}, "
            f"not 0x0000{_UNSIGNED_BYTE:02x}{dimensions:02x}"
        )
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    if len(content) - header != prod(shape):
        raise DatasetError(
            f"{path} is damaged: its header says {prod(shape)} values {shape}, it holds {len(content) - header}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
