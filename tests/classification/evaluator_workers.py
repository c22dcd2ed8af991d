"""What the processes of ``test_evaluator.py`` run; importable in a fresh process."""

from __future__ import annotations

import json
import os

import numpy as np
import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from PIL import Image
from torch import Tensor, nn

from mokd_det.classification import (
    ArrayDataset,
    ClassificationBatch,
    ClassificationEvaluator,
    build_classification_test_loader,
)


def numbered_images(size: int) -> ArrayDataset:
    """Images whose pixels are their number, of three classes."""
    images = np.broadcast_to(np.arange(size, dtype=np.uint8)[:, None, None], (size, 4, 4))
    return ArrayDataset("numbered", ["a", "b", "c"], np.arange(size) % 3, images)


def pixels(image: Image.Image) -> Tensor:
    """The pixels as they are."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


class FirstPixels(nn.Module):
    """Right for images below 5, of decreasing confidence; notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, batch: ClassificationBatch) -> Tensor:
        numbers = batch.images[:, 0, 0, 0].long()
        self.seen += numbers.tolist()
        predicted = torch.where(numbers < 5, numbers % 3, (numbers + 1) % 3)
        return nn.functional.one_hot(predicted, 3) * (4.0 - 0.3 * numbers[:, None])


def evaluate_to(directory: str, size: int) -> None:
    """Evaluate this process's share; write the results and the images seen."""
    data, model = numbered_images(size), FirstPixels()
    results = inference_on_dataset(
        model, build_classification_test_loader(data, pixels, 2), ClassificationEvaluator(data)
    )
    with open(os.path.join(directory, f"rank{comm.get_rank()}.json"), "w") as file:
        json.dump({"results": results, "seen": model.seen}, file)
