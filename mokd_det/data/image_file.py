"""Image files against what the annotations say of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image

from mokd_det.errors import ConfigError, DatasetError

__all__ = [
    "DECODERS",
    "check_decoder",
    "check_size",
    "image_size",
    "read_image",
    "read_image_of",
    "size_difference",
]

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
_END_OF_JPEG = b"\xff\xd9"
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def read_image_of(record: Mapping[str, Any], decoder: str = "pil") -> np.ndarray:
    """:func:`read_image` of a standard dict's ``file_name``, with the size that the dict says, if it does.

    Raises:
        DatasetError: a file that is missing, cannot be decoded or has another size than the record says.
    """
    name = f"image {record['file_name']} (image id {record.get('image_id')})"
    image = read_image(record["file_name"], name, decoder)
    _require_size(image.shape[1::-1], record, name)
    return image


def check_size(record: Mapping[str, Any]) -> None:
    """See by its file's header alone that an image has the size that its standard dict says.

    Raises:
        DatasetError: as :func:`read_image_of`, but for damage behind the header.
    """
    name = f"image {record['file_name']} (image id {record.get('image_id')})"
    _require_size(image_size(record["file_name"], name), record, name)


def _require_size(found: tuple[int, int], record: Mapping[str, Any], name: str) -> None:
    expected = record.get("width", found[0]), record.get("height", found[1])
    difference = size_difference(found, expected, record["file_name"])
    if difference:
        raise DatasetError(f"{name} {difference}")


def check_decoder(decoder: str) -> None:
    """
    Raises:
        ConfigError: a name that is not of :data:`DECODERS`.
    """
    if decoder not in DECODERS:
        raise ConfigError(f"decoder is {decoder!r}; it must be {', '.join(DECODERS)}")


def read_image(file_name: str, name: str, decoder: str = "pil") -> np.ndarray:
    """An image file as Detectron2 reads it: grayscale, palette and CMYK become RGB, EXIF orientation applied.

    Pixels of more than 8 bits are refused: PIL would cut them off at 255, which leaves a white image.

    Args:
        file_name: path.
        name: what messages call it.
        decoder: of :data:`DECODERS`. Others than "pil" decode whole upright JPEG files in grey or RGB; what else there
            is stays PIL's. All use libjpeg's arithmetic, but with the options of their builds, so that pixels can
            differ between them by a step or two (they are equal in the pinned versions).

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        DatasetError: a file that is missing, cannot be decoded or has pixels of more than 8 bits.
    """
    decode = DECODERS[decoder]
    with _errors_named(name), PathManager.open(file_name, "rb") as file:
        content = None if decode is None else file.read()
        image = Image.open(file if content is None else io.BytesIO(content))
        _check_depth(image, name)
        if decode is not None and content is not None and _is_plain_jpeg(image, content):
            return decode(content)
        upright = detection_utils._apply_exif_orientation(image)
        return detection_utils.convert_PIL_to_numpy(upright, "RGB")


def image_size(file_name: str, name: str) -> tuple[int, int]:
    """(width, height) that :func:`read_image` will give, from the file's header alone.

    Raises:
        DatasetError: a file that is missing, no image or has pixels of more than 8 bits.
    """
    with _errors_named(name), PathManager.open(file_name, "rb") as file:
        image = Image.open(file)
        _check_depth(image, name)
        return image.size[::-1] if _turns(image) else image.size


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    try:
        yield
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{name} does not exist") from None
    except Exception as error:
        # Decoders meet broken files with nearly any exception class; whichever it is, the file is the cause.
        raise DatasetError(f"{name} cannot be decoded: {type(error).__name__}: {error}") from error


def size_difference(found: tuple[int, int], expected: tuple[int, int], file_name: str) -> str:
    """Half a sentence about (width, height) of a file that differ from its annotation's, with the likely cause; "" if
    they are equal."""
    if found == expected:
        return ""
    text = (
        f"has height {found[1]} and width {found[0]}, but its annotation says height {expected[1]} and width "
        f"{expected[0]}"
    )
    if found != expected[::-1]:
        return text
    with PathManager.open(file_name, "rb") as file:
        turned = _turns(Image.open(file))
    if not turned:
        return f"{text}: width and height are exchanged"
    return (
        f"{text}: the file's EXIF orientation turns it by 90 degrees, and the annotation describes it unturned; "
        "annotate the image as viewers show it, or remove the orientation from the file"
    )


def _turns(image: Image.Image) -> bool:
    """Whether the EXIF orientation exchanges width and height."""
    # To find this block behind the pixels of a PNG, PIL would decode them.
    has_exif = image.format != "PNG" or "exif" in image.info
    return has_exif and image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS


def _is_plain_jpeg(image: Image.Image, content: bytes) -> bool:
    """Whether nothing about a file needs PIL: no turn, no CMYK, not cut short, which others would fill up in grey."""
    return (
        image.format == "JPEG"
        and image.mode in ("L", "RGB")
        and image.getexif().get(_EXIF_ORIENTATION, 1) == 1
        and _END_OF_JPEG in content[-1024:]
    )


def _by_opencv(content: bytes) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if decoded is None:
        raise ValueError("OpenCV cannot decode it")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _by_torchvision(content: bytes) -> np.ndarray:
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    decoded = torchvision.io.decode_jpeg(encoded, mode=torchvision.io.ImageReadMode.RGB)
    return np.ascontiguousarray(decoded.permute(1, 2, 0).numpy())


DECODERS: dict[str, Callable[[bytes], np.ndarray] | None] = {
    "pil": None,
    "opencv": _by_opencv,
    "torchvision": _by_torchvision,
}
"""What can decode a plain JPEG file: from its content to uint8 (H, W, 3), RGB; None: PIL."""


def _check_depth(image: Image.Image, name: str) -> None:
    if image.mode in _DEEP_MODES:
        raise DatasetError(
            f"{name} has pixels of more than 8 bits (PIL's mode {image.mode}); save it with 8 bits per channel"
        )
