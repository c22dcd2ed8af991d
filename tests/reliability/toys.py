"""Models and loaders that break in chosen ways."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.engine.toy import SIZE, ToyDetector, ToyLoader, toy_item


class Poisoned(ToyLoader):
    """Puts a number into the first pixel of chosen images.

    Args:
        images: {sample index: number}.
    """

    def __init__(self, total_batch_size: int = 4, images: dict[int, float] | None = None) -> None:
        super().__init__(total_batch_size)
        self.images = images or {}

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for items in super().__iter__():
            for item in items:
                if item["image_id"] in self.images:
                    item["image"][0, 0, 0] = self.images[item["image_id"]]
            yield items


class Slow(ToyLoader):
    """Takes its time for every batch; at one of them it waits for a file to appear.

    Args:
        seconds: per batch.
        wait_at: batch before which the loader writes ``<signal_file>.waiting`` and waits.
        signal_file: what it waits for.
    """

    def __init__(
        self,
        total_batch_size: int = 4,
        seconds: float = 0.0,
        wait_at: int | None = None,
        signal_file: str = "",
        crash_at: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(total_batch_size, crash_at=crash_at)
        self.seconds, self.wait_at, self.signal_file = seconds, wait_at, Path(signal_file)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for number, items in enumerate(super().__iter__(), self.start):
            time.sleep(self.seconds)
            if number == self.wait_at:
                self.signal_file.with_suffix(".waiting").touch()
                while not self.signal_file.exists():
                    time.sleep(0.01)
            yield items


class KillsItsProcess:
    """A mapper that kills the process it runs in at one record."""

    def __init__(self, image_id: int) -> None:
        self.image_id = image_id

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        if record["image_id"] == self.image_id:
            os.kill(os.getpid(), signal.SIGKILL)
        return toy_item(record["image_id"])


def records(count: int) -> list[dict[str, Any]]:
    return [{"image_id": index, "file_name": f"toy_{index}.png"} for index in range(count)]


class BadGradient(ToyDetector):
    """All losses are finite, but from image ``image_id`` on the gradient of one head is not: √x at x = 0."""

    def __init__(self, image_id: int = 5, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self.image_id = image_id

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        losses = super().forward(batched_inputs)
        if self.training and any(item["image_id"] == self.image_id for item in batched_inputs):
            weight = self.heads["extra"].weight
            losses["loss_extra"] = losses["loss_extra"] + (0.0 * weight).sqrt().sum()
        return losses


class BadLayer(nn.Module):
    """Divides by zero where the first number of its input is above a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, values: Tensor) -> Tensor:
        return values / (values[:, :1] < self.limit)


class BadForward(ToyDetector):
    """One of its modules makes infinities from numbers that are above a limit."""

    def __init__(self, limit: float = 1.0, raises: bool = False) -> None:
        super().__init__(dropout=0.0)
        self.norm = nn.Sequential(self.norm, BadLayer(limit))
        self.raises = raises

    def features(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        images = torch.stack([item["image"] for item in batched_inputs]).flatten(1)
        hidden = self.norm(self.backbone(images))
        if self.raises and not bool(hidden.isfinite().all()):
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
        return hidden.square()


class PixelSum(nn.Module):
    """A teacher: vectors that show what is in the image."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Linear(3 * SIZE * SIZE, width)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        return self.body(torch.stack([item["image"] for item in batched_inputs]).flatten(1))


class Blind(ToyDetector):
    """A student that does not look at an image whose first pixel is not a number: it replaces it."""

    def features(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        clean = [{**item, "image": item["image"].nan_to_num()} for item in batched_inputs]
        return super().features(clean)
