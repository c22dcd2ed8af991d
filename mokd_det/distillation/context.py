"""What a method may know of a batch besides the taps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["MethodContext", "Objects", "batch_context"]


@dataclass(frozen=True)
class Objects:
    """The annotated objects of B images.

    Attributes:
        boxes: of each image, (n, 4), corners in pixels of the batch.
        classes: of each image, (n,) int64.
        sizes: (height, width) of each image in the batch, without padding.
    """

    boxes: tuple[Tensor, ...]
    classes: tuple[Tensor, ...]
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class MethodContext:
    """Labels and bookkeeping of one batch of B images, as far as the batch knows them.

    A batch object states them by a method ``method_context()``; of Detectron2's list of dicts only the objects are
    known.

    Attributes:
        targets: what the task loss compares with: (B,) int64, or (B, K) float for mixed or smoothed labels.
        labels: (B,) int64, the images' own classes, before any mixing.
        indices: (B,) int64, positions of the images in the training set.
        negatives: (B, N) int64, positions of N images of other classes, for methods that contrast.
        epoch: passes over the training set done so far, as a fraction; for warm-ups.
        objects: what the images show, for detectors.
    """

    targets: Tensor | None = None
    labels: Tensor | None = None
    indices: Tensor | None = None
    negatives: Tensor | None = None
    epoch: float = 0.0
    objects: Objects | None = None


def batch_context(inputs: Any) -> MethodContext:
    """What a loader's batch states of itself."""
    told = getattr(inputs, "method_context", None)
    if told is not None:
        return told()
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
