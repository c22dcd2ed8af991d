"""Batches as plain values, which a file can hold without holding code, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks, RotatedBoxes
from torch import Tensor

from mokd_det.classification.batch import ClassificationBatch
from mokd_det.errors import CheckpointError

__all__ = ["from_plain", "to_plain"]

_KIND = "__kind__"
_OF_ONE_TENSOR: dict[str, Any] = {kind.__name__: kind for kind in (Boxes, RotatedBoxes, BitMasks, Keypoints)}


def to_plain(value: Any) -> Any:
    """The value with tensors on the CPU, plain containers, numbers and strings only.

    Raises:
        TypeError: something in it has no plain form.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {_KIND: "array", "values": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Instances):
        fields = {name: to_plain(field) for name, field in value.get_fields().items()}
        return {_KIND: "Instances", "image_size": list(value.image_size), "fields": fields}
    if isinstance(value, PolygonMasks):
        return {_KIND: "PolygonMasks", "polygons": to_plain(value.polygons)}
    if isinstance(value, ClassificationBatch):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {_KIND: "ClassificationBatch", "fields": fields}
    for name, kind in _OF_ONE_TENSOR.items():
        if type(value) is kind:
            return {_KIND: name, "tensor": to_plain(value.tensor)}
    raise TypeError(f"a batch with an object of type {type(value).__name__} has no plain form")


def from_plain(value: Any) -> Any:
    """What :func:`to_plain` was given (tuples have become lists).

    Raises:
        CheckpointError: an object of a kind that is not known here.
    """
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if _KIND not in value:
        return {key: from_plain(item) for key, item in value.items()}
    if value[_KIND] in _OF_ONE_TENSOR:
        return _OF_ONE_TENSOR[value[_KIND]](value["tensor"])
    builders: dict[str, Callable[[], Any]] = {
        "array": lambda: value["values"].numpy(),
        "Instances": lambda: Instances(tuple(value["image_size"]), **from_plain(value["fields"])),
        "PolygonMasks": lambda: PolygonMasks(from_plain(value["polygons"])),
        "ClassificationBatch": lambda: ClassificationBatch(**from_plain(value["fields"])),
    }
    if value[_KIND] not in builders:
        raise CheckpointError(f"the batch holds an object of the unknown kind {value[_KIND]!r}")
    return builders[value[_KIND]]()
