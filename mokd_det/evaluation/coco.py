"""COCO's box metrics in Detectron2's evaluation loop, judged by what training sees of the data set."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

import mokd_det.data  # noqa: F401  (registers the bundled data sets, whose names a config may give)
from mokd_det.data.truth import dataset_truth
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.evaluation.coco_backends import STATS, BoxEvaluation, choose_backend, evaluate_boxes

__all__ = ["CocoDetectionEvaluator"]

logger = logging.getLogger(__name__)


class CocoDetectionEvaluator(DatasetEvaluator):
    """Box AP of one data set (AP, AP50, AP75, by size, and ``AP-<class>``), in percent, as the official code
    computes it.

    What differs from Detectron2's evaluator:

    - The truth is :func:`mokd_det.data.truth.dataset_truth`: boxes are clipped to their images as in training, and
      those left out by ``on_bad_box="drop"`` are not missed. Files need neither ``area`` nor ``iscrowd``.
    - No predictions at all (an untrained model, a high threshold) is the legitimate result AP 0.0, for every
      class too, where the base class returns NaN or nothing. A metric without any true box stays NaN.
    - A predicted class or image that the data set does not have is one clear error.
    - The numbers may be computed by another program than pycocotools, which gives the same ones sooner.
    """

    main_metric: ClassVar[str] = "bbox/AP"
    """What a run is judged by."""

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        max_dets_per_image: int | None = None,
        predicts_dataset_ids: bool = False,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            dataset_name: a registered data set.
            output_dir: where the predictions are written; None: nowhere.
            distributed: gather the predictions of all processes.
            max_dets_per_image: limit in AP; None: COCO's 100.
            predicts_dataset_ids: ``pred_classes`` are the file's category ids instead of contiguous indices,
                as from the 91 rows of an official ViDT head. Predictions of ids that the file does not use,
                up to its largest, are such a head's spare rows and are left out.
            backend: what computes the metrics: "hotcoco", "pycocotools" (the official code), or "auto" for the
                first of these that is installed. They give equal numbers.

        Raises:
            ConfigError: an unknown backend, or one that is not installed.
            DatasetError: unknown data set, or anything in its files that cannot be used.
        """
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = None if output_dir is None else os.fspath(output_dir)
        self._max_dets = (1, 10, 100 if max_dets_per_image is None else max_dets_per_image)
        self._backend = choose_backend(backend)
        self._predicts_dataset_ids = predicts_dataset_ids
        self._truth = dataset_truth(dataset_name, warn=False)
        known = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
        self._class_of_id: dict[int, int] = known or {id_: i for i, id_ in enumerate(self._truth.class_names)}
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Collect the predictions of a batch: of inputs with ``image_id`` outputs with ``instances``, whose
        ``pred_boxes`` are absolute xyxy in the original image.

        Raises:
            ConfigError: a class that the data set does not have, or an output without ``instances``.
            DatasetError: an image that the data set does not have.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            if image_id not in self._truth.image_names:
                raise DatasetError(
                    f"prediction for image id {image_id!r}, which {self._dataset_name!r} does not have; "
                    "the test loader and the evaluator must use the same data set"
                )
            if "instances" not in output:
                raise ConfigError(
                    f"the model's output for image id {image_id} has no 'instances' but {sorted(output)}; "
                    "only detectors can be evaluated with COCO's box metrics"
                )
            instances = self._to_contiguous(output["instances"], image_id).to("cpu")
            self._predictions.append(
                {"image_id": image_id, "instances": instances_to_coco_json(instances, image_id)}
            )

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Metrics of everything collected since :meth:`reset`, on all images of the file or on these only.

        Returns:
            ``{"bbox": {"AP": …, "AP50": …, "AP75": …, "APs": …, "APm": …, "APl": …, "AP-<class>": …}}``,
            percent; empty on processes other than the main one, and for files without annotations (whose
            predictions are only written).
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain.from_iterable(comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as file:
                torch.save(predictions, file)
        id_of_class = {index: id_ for id_, index in self._class_of_id.items()}
        boxes = [
            {**box, "category_id": id_of_class[box["category_id"]]}
            for image in predictions
            for box in image["instances"]
        ]
        if self._output_dir:
            with PathManager.open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as file:
                json.dump(boxes, file)
        if not self._truth.annotated:
            logger.info("%s has no annotations: nothing is evaluated", self._dataset_name)
            return {}
        if not boxes:
            logger.warning("no predictions on %s: AP is 0", self._dataset_name)
        evaluation = evaluate_boxes(
            self._truth, boxes, backend=self._backend, img_ids=img_ids, max_dets=self._max_dets
        )
        recalls = zip(STATS[6:], 100 * evaluation.stats[6:], strict=True)
        logger.info(
            "%s, by %s: %s",
            self._dataset_name,
            self._backend,
            ", ".join(f"{name} {value:.2f}" for name, value in recalls if value >= 0),
        )
        return {"bbox": self._metrics(evaluation)}

    def _metrics(self, evaluation: BoxEvaluation) -> dict[str, float]:
        """Percent, by name; NaN where there is no truth. A single class has no metric of its own: it would be AP."""
        figures = {
            name: 100 * float(value) if value >= 0 else math.nan
            for name, value in zip(STATS[:6], evaluation.stats[:6])
        }
        names = list(self._truth.class_names.values())
        if len(names) > 1:
            # All areas, the largest number of detections.
            for name, precision in zip(names, np.moveaxis(evaluation.eval["precision"][..., 0, -1], 2, 0)):
                known = precision[precision > -1]
                figures[f"AP-{name}"] = 100 * float(known.mean()) if known.size else math.nan
        return figures

    def _to_contiguous(self, instances: Any, image_id: Any) -> Any:
        """Check ``pred_classes`` and make them contiguous indices."""
        classes = instances.pred_classes.to("cpu", torch.int64)
        num_classes = len(self._class_of_id)
        limit = max(self._class_of_id) + 1 if self._predicts_dataset_ids else num_classes
        wrong = classes[(classes < 0) | (classes >= limit)]
        if len(wrong):
            raise ConfigError(
                f"image id {image_id}: predicted class {int(wrong[0])}, but {self._dataset_name!r} has "
                f"{num_classes} classes (0 to {limit - 1} can be predicted); model.num_classes must fit the "
                "data set"
            )
        if not self._predicts_dataset_ids:
            return instances
        table = torch.full((limit,), -1)
        for id_, index in self._class_of_id.items():
            table[id_] = index
        instances = instances.to("cpu")
        instances.pred_classes = table[classes]
        return instances[instances.pred_classes >= 0]
