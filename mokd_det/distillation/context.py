"""What a method may know of a batch besides the taps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["MethodContext"]


@dataclass(frozen=True)
class MethodContext:
    """Labels and bookkeeping of one batch of B images, as far as the batch knows them.

    A batch object states them by a method ``method_context()``; Detectron2's list of dicts states none.

    Attributes:
        targets: what the task loss compares with: (B,) int64, or (B, K) float for mixed or smoothed labels.
        labels: (B,) int64, the images' own classes, before any mixing.
        indices: (B,) int64, positions of the images in the training set.
        negatives: (B, N) int64, positions of N images of other classes, for methods that contrast.
        epoch: passes over the training set done so far, as a fraction; for warm-ups.
    """

    targets: Tensor | None = None
    labels: Tensor | None = None
    indices: Tensor | None = None
    negatives: Tensor | None = None
    epoch: float = 0.0
