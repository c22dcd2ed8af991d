"""Classifiers small enough to train in a test, and batches for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from mokd_det.classification import ClassificationBatch
from tests.engine.toy import SIZE, ToyEvaluator, ToyLoader, ToyTestLoader

CLASSES = 5


def toy_vit(depth: int = 2, drop_path_rate: float = 0.3, num_classes: int = CLASSES) -> nn.Module:
    """A distilled DeiT of nine patches."""
    return VisionTransformerDistilled(
        img_size=SIZE,
        patch_size=2,
        embed_dim=16,
        depth=depth,
        num_heads=2,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


class ToyCnn(nn.Module):
    """Two convolutions in timm's form."""

    def __init__(self, width: int = 24, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, width
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.GELU())
        self.fc = nn.Linear(width, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.fc(features.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def toy_batch(items: list[dict[str, Any]], soft: bool = True) -> ClassificationBatch:
    """The detector's toy items as a batch of images with classes."""
    indices = torch.tensor([item["image_id"] for item in items])
    labels = indices % CLASSES
    targets = 0.9 * nn.functional.one_hot(labels, CLASSES) + 0.1 / CLASSES if soft else labels
    images = torch.stack([item["image"] for item in items])
    return ClassificationBatch(images, targets, labels, indices, [item["file_name"] for item in items])


class ToyClassificationLoader(ToyLoader):
    """The detector's toy loader, with classes; ``poison``: samples whose pixels are NaN."""

    def __iter__(self) -> Iterator[ClassificationBatch]:
        for items in super().__iter__():
            for item in items:
                if "poison" in item:
                    item["image"] = item["image"] * float("nan")
            yield toy_batch(items)


class ToyClassificationTestLoader(ToyTestLoader):
    def __iter__(self) -> Iterator[ClassificationBatch]:
        return iter([toy_batch(items, soft=False) for items in super().__iter__()])


class ToyClassificationEvaluator(ToyEvaluator):
    """The mean of the first logit as "top1"."""

    def process(self, inputs: Any, outputs: Tensor) -> None:
        self.scores += outputs[:, 0].tolist()

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"classification": {"top1": sum(self.scores) / len(self.scores)}}
