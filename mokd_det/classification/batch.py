"""The batch of a classification loader."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mokd_det.contract import LoadedBatch, MethodContext

__all__ = ["ClassificationBatch"]


@dataclasses.dataclass(frozen=True)
class ClassificationBatch(LoadedBatch):
    """B images of one size with their classes.

    Attributes:
        images: (B, 3, H, W) float, normalised by the loader.
        targets: (B,) int64, or (B, K) float for mixed or smoothed labels; what the loss compares with.
        labels: (B,) int64, the images' own classes, before any mixing.
        indices: (B,) int64, positions in the data set.
        names: what an error message calls each image, its file for instance.
        epoch: passes over the training set done so far, as a fraction.
        negatives: (B, N) int64, positions of images of other classes; None: the loader draws none.
        view_keys: of :func:`~mokd_det.data.view_key.view_key`; None: the loader augments without end.
    """

    images: Tensor
    targets: Tensor
    labels: Tensor
    indices: Tensor
    names: Sequence[str]
    epoch: float = 0.0
    negatives: Tensor | None = None
    view_keys: Sequence[Sequence[int]] | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str) -> ClassificationBatch:
        """The batch with its tensors on a device."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def select(self, positions: Sequence[int]) -> ClassificationBatch:
        """The batch of these of its images alone."""
        chosen = list(positions)
        picked: dict[str, Any] = {
            field.name: value[chosen] if isinstance(value, Tensor) else [value[i] for i in chosen]
            for field in dataclasses.fields(self)
            if field.name != "epoch" and (value := getattr(self, field.name)) is not None
        }
        return dataclasses.replace(self, **picked)

    def method_context(self) -> MethodContext:
        """What a distillation method may know of this batch."""
        return MethodContext(self.targets, self.labels, self.indices, self.negatives, self.epoch)
