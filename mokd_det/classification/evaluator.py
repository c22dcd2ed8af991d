"""Top-1 and top-5 accuracy, accuracy of each class and calibration error of classifiers."""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from mokd_det.classification.batch import ClassificationBatch
from mokd_det.classification.calibration import expected_calibration_error
from mokd_det.classification.dataset import ImageDataset
from mokd_det.errors import ConfigError, DatasetError, InvalidLossError

__all__ = ["ClassificationEvaluator"]

_FIELDS = ("index", "label", "rank", "confidence")


class ClassificationEvaluator(DatasetEvaluator):
    """Metrics of one data set, in percent, under the task "classification":

    - ``top1``, ``top5``: images whose class has the highest, or one of the five highest outputs. Of equal outputs
      the one with the smaller class number comes first. With five classes or fewer ``top5`` is 100 by definition.
    - ``ece``: :func:`~mokd_det.classification.calibration.expected_calibration_error` of the softmax of the
      outputs, with 15 bins. Lower is better.
    - ``top1-<class>``: images of that class that are classified correctly; NaN without any.

    Each image counts exactly once, on however many processes: one that is missing or comes twice is an error.
    """

    main_metric: ClassVar[str] = "classification/top1"
    """What a run is judged by."""

    def __init__(
        self, dataset: ImageDataset, *, bins: int = 15, per_class: bool = True, distributed: bool = True
    ) -> None:
        """
        Args:
            dataset: what the test loader loads from.
            bins: of the calibration error.
            per_class: report each class's accuracy too.
            distributed: gather the predictions of all processes.

        Raises:
            ConfigError: fewer than one bin.
        """
        if bins < 1:
            raise ConfigError(f"bins={bins}: must be 1 or more")
        self._dataset = dataset
        self._bins = bins
        self._per_class = per_class
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._collected: list[dict[str, np.ndarray]] = []

    def process(self, batch: ClassificationBatch, outputs: Tensor) -> None:
        """Collect the predictions of B images, (B, K) logits.

        Raises:
            ConfigError: another number of classes than the data set has, or no such tensor.
            InvalidLossError: an output that is not finite, with the image's name.
        """
        classes = self._dataset.num_classes
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(batch):
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ConfigError(
                f"the model's output is {found}; a classifier's must be logits ({len(batch)}, number of classes)"
            )
        if outputs.shape[1] != classes:
            raise ConfigError(
                f"the model predicts {outputs.shape[1]} classes, but {self._dataset.name} has {classes}; "
                "model.num_classes must fit the data set"
            )
        logits = outputs.detach().to("cpu", torch.float64)
        broken = torch.nonzero(~torch.isfinite(logits).all(dim=1))
        if len(broken):
            raise InvalidLossError(
                f"the model's output for {batch.names[int(broken[0])]} has NaN or infinite entries"
            )
        labels = batch.labels.to("cpu")
        own = logits.gather(1, labels[:, None])
        earlier = torch.arange(classes) < labels[:, None]
        rank = ((logits > own) | ((logits == own) & earlier)).sum(dim=1)
        self._collected.append(
            {
                "index": batch.indices.cpu().numpy(),
                "label": labels.numpy(),
                "rank": rank.numpy(),
                "confidence": logits.softmax(dim=1).amax(dim=1).numpy(),
            }
        )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics of everything collected since :meth:`reset`.

        Returns:
            ``{"classification": {"top1": …, "top5": …, "ece": …, "top1-<class>": …}}``, percent; empty on
            processes other than the main one.

        Raises:
            DatasetError: an image of the data set was not evaluated, or more than once.
        """
        collected = self._collected
        if self._distributed:
            comm.synchronize()
            collected = list(itertools.chain.from_iterable(comm.gather(collected, dst=0)))
            if not comm.is_main_process():
                return {}
        found = {
            name: np.concatenate([part[name] for part in collected] or [np.empty(0)]) for name in _FIELDS
        }
        self._check_complete(found["index"].astype(np.int64))
        correct = found["rank"] == 0
        metrics = {
            "top1": 100.0 * float(correct.mean()),
            "top5": 100.0 * float((found["rank"] < 5).mean()),
            "ece": 100.0 * expected_calibration_error(found["confidence"], correct, self._bins),
        }
        if self._per_class:
            for number, name in enumerate(self._dataset.class_names):
                of_class = correct[found["label"] == number]
                metrics[f"top1-{name}"] = 100.0 * float(of_class.mean()) if len(of_class) else float("nan")
        return {"classification": metrics}

    def _check_complete(self, indices: np.ndarray) -> None:
        name, size = self._dataset.name, len(self._dataset)
        strange = indices[(indices < 0) | (indices >= size)]
        if len(strange):
            raise DatasetError(
                f"the model was evaluated on image {strange[0]}, which {name} with its {size} images does not "
                "have; the test loader and the evaluator must use the same data set"
            )
        counts = np.bincount(indices, minlength=size)
        for wrong, what in ((counts == 0, "never"), (counts > 1, "more than once")):
            if wrong.any():
                raise DatasetError(
                    f"{int(wrong.sum())} of {size} images of {name} were evaluated {what}, for instance image "
                    f"{int(wrong.argmax())}; the test loader must give each process its own share of all images"
                )
