"""What a loader's batch tells a method besides the taps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mokd_det.contract import LoadedBatch, MethodContext, Objects

__all__ = ["MethodContext", "Objects", "batch_context"]


def batch_context(inputs: Any) -> MethodContext:
    """What a loader's batch states of itself."""
    if isinstance(inputs, LoadedBatch):
        return inputs.method_context()
    labelled = (
        isinstance(inputs, Sequence)
        and bool(inputs)
        and all(isinstance(item, Mapping) and "instances" in item for item in inputs)
    )
    if not labelled:
        return MethodContext()
    instances = [item["instances"] for item in inputs]
    return MethodContext(
        objects=Objects(
            tuple(found.gt_boxes.tensor for found in instances),
            tuple(found.gt_classes for found in instances),
            tuple((int(found.image_size[0]), int(found.image_size[1])) for found in instances),
        )
    )
