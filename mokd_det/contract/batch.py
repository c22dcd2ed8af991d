"""What the rooms ask of a batch: the loader's, and the one that the model is called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mokd_det.layers.tap_point import FeatureMap

__all__ = ["LoadedBatch", "MethodContext", "Objects", "PreparedBatch", "loaded_batch"]


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

    A :class:`LoadedBatch` states them by its ``method_context()``; of Detectron2's list of dicts only the objects are
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


class LoadedBatch:
    """A loader's batch that is an object, not Detectron2's list of dicts; derived classes have all of these.

    Attributes:
        images: (B, 3, H, W) float, normalised.
        names: what an error message calls each image, its file for instance.
        view_keys: what each image shows (:func:`~mokd_det.data.view_key.view_key`), by which a teacher's cache finds
            it; None: the loader augments without end.
    """

    images: Tensor
    names: Sequence[str]
    view_keys: Sequence[Sequence[int]] | None

    def method_context(self) -> MethodContext:
        """What a distillation method may know of this batch; by default nothing."""
        return MethodContext()


@dataclass(frozen=True)
class PreparedBatch:
    """What a model is called with, if its ``prepare_batch`` returns more than the loader's batch.

    Attributes:
        inputs: the loader's batch: ``list[dict]`` or a :class:`LoadedBatch`.
        teacher_taps: name → value of the teacher's tap, without a graph.
    """

    inputs: Any
    teacher_taps: dict[str, Tensor | list[FeatureMap]] = field(default_factory=dict)

    @property
    def side_events(self) -> tuple[torch.cuda.Event, torch.cuda.Event] | None:
        """First and last event of what its preparation does on a CUDA stream of its own; None: it has none."""
        return None


def loaded_batch(batch: Any) -> Any:
    """The loader's batch, of one that may have been prepared."""
    return batch.inputs if isinstance(batch, PreparedBatch) else batch
