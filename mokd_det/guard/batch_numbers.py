"""The inputs of a training forward: are they all finite, and if not, of which images?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mokd_det.contract import LoadedBatch, PreparedBatch, loaded_batch

__all__ = ["IMAGES", "bad_positions", "describe_images", "forward_inputs", "number_sums"]

IMAGES = "an input image"
"""How messages call the images of a batch."""

_MAX_IMAGES_NAMED = 16


def describe_images(batch: Any, positions: Sequence[int] | None = None) -> str:
    """Images of a micro-batch, all or those at some positions, for an error message: ids and file names where the items
    carry them."""
    items = loaded_batch(batch)
    if isinstance(items, LoadedBatch):
        items = [{"file_name": name} for name in items.names]
    if not isinstance(items, Sequence) or not all(isinstance(item, Mapping) for item in items):
        return "a batch without image ids"
    described = []
    for position, item in enumerate(items):
        if positions is not None and position not in positions:
            continue
        image_id, file_name = item.get("image_id"), item.get("file_name")
        parts = [] if image_id is None else [f"id {image_id}"]
        parts += [] if not file_name else [f"'{file_name}'"]
        described.append(" ".join(parts) or f"number {position} of the batch")
    shown = ", ".join(described[:_MAX_IMAGES_NAMED])
    more = len(described) - _MAX_IMAGES_NAMED
    return shown if more <= 0 else f"{shown} and {more} more"


def forward_inputs(batch: Any) -> dict[str, list[Tensor]]:
    """The floating-point images of a batch and the teacher's taps, by what messages call them.

    Whole numbers (images as they come from a decoder) are left out: they are finite.
    """
    inputs = loaded_batch(batch)
    images: list[Any] = []
    if isinstance(inputs, LoadedBatch):
        images = [inputs.images]
    elif isinstance(inputs, Sequence):
        images = [item.get("image") for item in inputs if isinstance(item, Mapping)]
    found = {IMAGES: _floating(images)}
    for name, value in (batch.teacher_taps if isinstance(batch, PreparedBatch) else {}).items():
        levels = [level.tensor for level in value] if isinstance(value, list) else [value]
        found[f"the teacher's tap '{name}'"] = _floating(levels)
    return found


def number_sums(batch: Any) -> dict[str, Tensor | float]:
    """One scalar per kind of input: 0, or NaN where one of them is NaN or infinite.

    Numbers on the host are judged at once; for those on a device the scalar stays there, so nothing waits.
    """
    sums: dict[str, Tensor | float] = {}
    for name, tensors in forward_inputs(batch).items():
        on_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        # A sum reads the numbers once and writes nothing; it may overflow without anything being wrong.
        bad = any(
            not math.isfinite(float(t.detach().sum())) and not bool(t.isfinite().all()) for t in on_host
        )
        total: Tensor | float = math.nan if bad else 0.0
        for tensor in tensors:
            if tensor.device.type != "cpu":
                total = total + 0.0 * tensor.detach().sum(dtype=torch.float32)
        sums[name] = total
    return sums


def bad_positions(batch: Any, name: str) -> list[int]:
    """Positions in the batch of the images with a number that is NaN or infinite; ``name`` is a key of
    :func:`forward_inputs`."""
    tensors = forward_inputs(batch)[name]
    inputs = loaded_batch(batch)
    if name == IMAGES and isinstance(inputs, Sequence):
        kept = [number for number, item in enumerate(inputs) if _floating([item.get("image")])]
        return [number for number, t in zip(kept, tensors, strict=True) if not bool(t.isfinite().all())]
    found: set[int] = set()
    for tensor in tensors:
        # Tokens of several levels have the batch second: (L, B, N, C); everything else has it first.
        stacked = name != IMAGES and tensor.ndim == 4 and not isinstance(_tap(batch, name), list)
        by_image = tensor.transpose(0, 1) if stacked else tensor
        finite = by_image.isfinite().flatten(1).all(dim=1)
        found.update(torch.nonzero(~finite).flatten().tolist())
    return sorted(found)


def _tap(batch: Any, name: str) -> Any:
    return next(value for tap, value in batch.teacher_taps.items() if name.endswith(f" '{tap}'"))


def _floating(tensors: Sequence[Any]) -> list[Tensor]:
    return [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]
