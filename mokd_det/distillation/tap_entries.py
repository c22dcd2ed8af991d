"""Taps of a batch as one row of bytes per image, and rows of any images as taps of a batch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from mokd_det.distillation.taps import TapValue
from mokd_det.errors import CacheError
from mokd_det.layers.tap_point import FeatureMap

__all__ = ["all_finite", "decode_rows", "encode_rows"]

_ALIGNMENT = 64
"""Bytes; of every part in a row, so that it can be read as numbers of any type where it lies."""


@dataclass(frozen=True)
class _Part:
    """One tensor of a tap, of one image.

    Attributes:
        tap: its name.
        kind: "map" (or "stretched", see FeatureMap) and "mask" of a level, "rows" (tokens or vectors), or "stack"
            (L, N, C).
        stride: of the level; 0 for the other kinds.
        shape: without the batch.
    """

    tap: str
    kind: str
    stride: int
    shape: tuple[int, ...]

    def bytes_of(self, dtype: torch.dtype) -> int:
        return math.prod(self.shape) * (1 if self.kind == "mask" else dtype.itemsize)


def encode_rows(taps: Mapping[str, TapValue], dtype: torch.dtype) -> Tensor:
    """One row of bytes per image, (B, bytes) uint8 on the CPU in multiples of 64: what it holds, then its numbers.

    Args:
        taps: of B images, floating point.
        dtype: the numbers' type in the rows.

    Raises:
        CacheError: a finite number that the type cannot hold.
    """
    parts, columns = [], []
    for part, tensor in _tensors(taps):
        converted = tensor if part.kind == "mask" else tensor.to(dtype)
        if part.kind != "mask" and not bool(converted.isfinite().all()) and bool(tensor.isfinite().all()):
            raise CacheError(
                f"the teacher's tap '{part.tap}' reaches {float(tensor.abs().max()):.3g}, more than "
                f"{_name(dtype)} holds ({torch.finfo(dtype).max:.3g}); set model.teacher_cache.precision=bfloat16"
            )
        columns.append(converted.contiguous().reshape(len(tensor), -1).view(torch.uint8))
        parts.append(part)
    header = _header(parts, dtype, columns[0].device)
    padded = [_pad(column) for column in (header.expand(len(columns[0]), -1), *columns)]
    return torch.cat(padded, 1).cpu()


def decode_rows(rows: Tensor, device: torch.device, dtype: torch.dtype) -> dict[str, TapValue]:
    """The taps of a batch whose images' rows (B, bytes) uint8, on the CPU, these are.

    Args:
        rows: one copy is made for all taps.
        device, dtype: where they are wanted, and the type of their numbers.

    Raises:
        CacheError: rows that do not belong into one batch.
    """
    parts, stored, start = _parse(rows)
    rows = rows.to(device, non_blocking=True)
    taps: dict[str, TapValue] = {}
    for part in parts:
        length = part.bytes_of(stored)
        column = rows[:, start : start + length]
        start += _padded(length)
        kind = torch.bool if part.kind == "mask" else stored
        # Several types are refused as views of an empty last dimension.
        values = column.view(kind) if length else column.to(kind)
        values = values.reshape(len(rows), *part.shape)
        if part.kind != "mask":
            values = values.to(dtype)
        _add(taps, part, values.contiguous())
    return taps


def all_finite(taps: Mapping[str, TapValue]) -> bool:
    """Whether no number of the taps is NaN or infinite; waits for the device."""
    return all(
        part.kind == "mask" or bool(tensor.isfinite().all())
        for part, tensor in _tensors(taps)
        if tensor.numel()
    )


def _tensors(taps: Mapping[str, TapValue]) -> Iterator[tuple[_Part, Tensor]]:
    """Every tensor of the taps, the batch first."""
    for tap, value in taps.items():
        if isinstance(value, list):
            for level in value:
                kind = "stretched" if level.stretched else "map"
                yield _Part(tap, kind, level.stride, tuple(level.tensor.shape[1:])), level.tensor
                mask = level.padding_mask
                if mask is not None:
                    yield _Part(tap, "mask", level.stride, tuple(mask.shape[1:])), mask
        elif value.ndim == 4:
            value = value.transpose(0, 1)
            yield _Part(tap, "stack", 0, tuple(value.shape[1:])), value
        else:
            yield _Part(tap, "rows", 0, tuple(value.shape[1:])), value


def _add(taps: dict[str, TapValue], part: _Part, values: Tensor) -> None:
    if part.kind == "rows":
        taps[part.tap] = values
    elif part.kind == "stack":
        taps[part.tap] = values.transpose(0, 1).contiguous()
    else:
        levels = taps.setdefault(part.tap, [])
        assert isinstance(levels, list)
        if part.kind != "mask":
            levels.append(FeatureMap(values, None, part.stride, part.kind == "stretched"))
        else:  # written right behind its map
            levels[-1] = replace(levels[-1], padding_mask=values)


def _header(parts: list[_Part], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Length of what follows (4 bytes), then type and parts as JSON."""
    text = json.dumps({"dtype": _name(dtype), "parts": [asdict(part) for part in parts]}).encode()
    content = bytearray(len(text).to_bytes(4, "little") + text)
    return torch.frombuffer(content, dtype=torch.uint8).to(device)


def _parse(rows: Tensor) -> tuple[list[_Part], torch.dtype, int]:
    """What the rows hold: parts, type of the numbers, and where they begin."""
    length = 4 + int.from_bytes(rows[0, :4].numpy().tobytes(), "little")
    if not torch.equal(rows[:, :length], rows[:1, :length].expand(len(rows), -1)):
        raise CacheError(
            "the teacher's taps have other shapes for some images of this batch than for others of the same padded "
            "size: they depend on more than the image, so this teacher cannot be cached; remove model.teacher_cache"
        )
    header = json.loads(rows[0, 4:length].numpy().tobytes())
    parts = [_Part(**{**part, "shape": tuple(part["shape"])}) for part in header["parts"]]
    return parts, getattr(torch, header["dtype"]), _padded(length)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _padded(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _pad(column: Tensor) -> Tensor:
    return torch.nn.functional.pad(column, (0, _padded(column.shape[1]) - column.shape[1]))
