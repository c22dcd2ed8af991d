"""Ground truth of a batch in the form that matching and losses need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["Targets"]


@dataclass(frozen=True)
class Targets:
    """Objects of all images of a batch, one after the other.

    Attributes:
        labels: class indices, (T,) int64.
        boxes: (T, 4) cxcywh relative to each image's own size, in [0, 1].
        counts: objects per image.
        names: what error messages call the images (file name or id); may be empty.
        masks: per image (objects, H, W) bool on the padded batch canvas; None unless a loss asks for them.
    """

    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]
    names: tuple[str, ...] = ()
    masks: Sequence[Tensor] | None = None

    @property
    def offsets(self) -> list[int]:
        """First row of each image."""
        return [0, *accumulate(self.counts)][:-1]

    def padded(self) -> tuple[Tensor, Tensor]:
        """Labels (B, T_max) and boxes (B, T_max, 4), padded with class 0 and the whole image."""
        batch, longest = len(self.counts), max(self.counts, default=0)
        slots = [i * longest + j for i, count in enumerate(self.counts) for j in range(count)]
        index = torch.tensor(slots, dtype=torch.int64).to(self.labels.device, non_blocking=True)
        labels = self.labels.new_zeros(batch * longest).index_copy(0, index, self.labels)
        # filled on the device: a copy from the host would wait for it
        whole = self.boxes.new_full((batch * longest, 4), 0.5)
        whole[:, 2:] = 1.0
        boxes = whole.index_copy(0, index, self.boxes)
        return labels.view(batch, longest), boxes.view(batch, longest, 4)

    def describe(self, image: int) -> str:
        """Name of an image for messages."""
        return repr(self.names[image]) if image < len(self.names) else f"number {image} of the batch"
