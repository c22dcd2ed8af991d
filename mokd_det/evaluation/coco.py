"""COCO's box metrics, by Detectron2's evaluator with the cases that it leaves open closed."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

import mokd_det.data  # noqa: F401  (registers the bundled data sets, whose names a config may give)
from mokd_det.data.catalog import load_classes
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.evaluation.coco_backends import STATS, choose_backend, evaluate_boxes

__all__ = ["CocoDetectionEvaluator"]


class CocoDetectionEvaluator(COCOEvaluator):
    """Box AP of one data set (AP, AP50, AP75, by size, and ``AP-<class>``), in percent, as the official code
    computes it.

    What differs from the base class:

    - No predictions at all (an untrained model, a high threshold) is the legitimate result AP 0.0, for every
      class too, where the base class returns NaN or nothing. A metric without any true box stays NaN.
    - A predicted class or image that the data set does not have is one clear error.
    - Files without ``area`` or ``iscrowd``, or with an annotation id 0 (which COCO's code takes for "not
      matched"), are evaluated correctly.
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
            distributed: gather the predictions of all processes; the main process returns the metrics, the
                others an empty dict.
            max_dets_per_image: limit in AP; None: COCO's 100.
            predicts_dataset_ids: ``pred_classes`` are the file's category ids instead of contiguous indices,
                as from the 91 rows of an official ViDT head. Predictions of ids that the file does not use,
                up to its largest, are such a head's spare rows and are left out.
            backend: what computes the metrics: "hotcoco", "pycocotools" (the official code), or "auto" for the
                first of these that is installed. They give equal numbers.

        Raises:
            ConfigError: an unknown backend, or one that is not installed.
            DatasetError: unknown data set, or an annotation file that is missing, unreadable or without
                classes.
        """
        load_classes(dataset_name)
        super().__init__(
            dataset_name,
            tasks=("bbox",),
            distributed=distributed,
            output_dir=None if output_dir is None else os.fspath(output_dir),
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=False,
        )
        self._dataset_name = dataset_name
        self._backend = choose_backend(backend)
        self._predicts_dataset_ids = predicts_dataset_ids
        self._class_of_id: dict[int, int] = self._metadata.get("thing_dataset_id_to_contiguous_id") or {
            i: i for i in range(len(self._metadata.thing_classes))
        }
        _complete(self._coco_api)
        self.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Collect the predictions of a batch.

        Args:
            inputs: each with ``image_id``.
            outputs: each with ``instances``: ``pred_boxes`` (absolute xyxy in the original image),
                ``scores``, ``pred_classes``.

        Raises:
            ConfigError: a class that the data set does not have, or an output without ``instances``.
            DatasetError: an image that the data set does not have.
        """
        checked = []
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            if image_id not in self._coco_api.imgs:
                raise DatasetError(
                    f"prediction for image id {image_id!r}, which {self._dataset_name!r} does not have; "
                    "the test loader and the evaluator must use the same data set"
                )
            if "instances" not in output:
                raise ConfigError(
                    f"the model's output for image id {image_id} has no 'instances' but {sorted(output)}; "
                    "only detectors can be evaluated with COCO's box metrics"
                )
            checked.append({"instances": self._to_contiguous(output["instances"], image_id)})
        super().process(inputs, checked)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Metrics of everything collected since :meth:`reset`.

        Args:
            img_ids: evaluate on these images only; None: on all images of the file.

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
        self._results: dict[str, dict[str, float]] = {}
        self._eval_predictions(predictions, img_ids=img_ids)
        return self._results

    def _eval_predictions(
        self, predictions: Sequence[Mapping[str, Any]], img_ids: Sequence[int] | None = None
    ) -> None:
        """Write the boxes in COCO's format, and evaluate them into ``_results``."""
        id_of_class = {index: id_ for id_, index in self._class_of_id.items()}
        boxes = [
            {**box, "category_id": id_of_class[box["category_id"]]}
            for image in predictions
            for box in image["instances"]
        ]
        if self._output_dir:
            with PathManager.open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as file:
                json.dump(boxes, file)
        if not self._do_evaluation:
            self._logger.info("%s has no annotations: nothing is evaluated", self._dataset_name)
            return
        if not boxes:
            self._logger.warning("no predictions on %s: AP is 0", self._dataset_name)
        evaluation = evaluate_boxes(
            self._coco_api,
            boxes,
            backend=self._backend,
            img_ids=img_ids,
            max_dets=self._max_dets_per_image,
        )
        recalls = zip(STATS[6:], 100 * evaluation.stats[6:], strict=True)
        self._logger.info(
            "%s, by %s: %s",
            self._dataset_name,
            self._backend,
            ", ".join(f"{name} {value:.2f}" for name, value in recalls if value >= 0),
        )
        self._results["bbox"] = self._derive_coco_results(
            evaluation, "bbox", class_names=self._metadata.get("thing_classes")
        )

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


def _complete(coco: COCO) -> None:
    """Add what COCO's code takes for granted, so that any detection file can be evaluated."""
    coco.dataset.setdefault("info", {})
    annotations = coco.dataset.get("annotations")
    if not annotations:
        return
    renumber = any(annotation.get("id", 0) == 0 for annotation in annotations)
    for number, annotation in enumerate(annotations, start=1):
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        annotation.setdefault("iscrowd", 0)
        if renumber:
            annotation["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
