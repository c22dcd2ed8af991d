"""COCO's box metrics from truth and predictions, by pycocotools or by a faster program that gives the same numbers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from mokd_det.data.truth import Truth
from mokd_det.errors import ConfigError

__all__ = ["BACKENDS", "STATS", "BoxEvaluation", "choose_backend", "evaluate_boxes", "truth_as_coco"]

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""What :attr:`BoxEvaluation.stats` holds, in its order; COCO's twelve figures (100: of whatever limit is set)."""

Boxes = Sequence[Mapping[str, Any]]
"""Predictions in COCO's result format: ``image_id``, ``category_id`` (the file's), ``bbox`` xywh, ``score``."""


@dataclass(frozen=True)
class BoxEvaluation:
    """Precision and recall of all classes, under the names that pycocotools' ``COCOeval`` has for them.

    Attributes:
        eval: ``precision`` (10 IoUs, 101 recalls, classes, 4 areas, 3 limits of detections) and ``recall`` (10 IoUs,
            classes, 4 areas, 3 limits), in [0, 1], -1 where there is no truth; classes in ascending order of id.
        stats: (12,) float64, see :data:`STATS`; -1 where there is no truth.
    """

    eval: dict[str, np.ndarray]
    stats: np.ndarray


def evaluate_boxes(
    truth: Truth,
    results: Boxes,
    *,
    backend: str,
    img_ids: Iterable[Any] | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
) -> BoxEvaluation:
    """Evaluate predicted boxes by COCO's rules.

    Args:
        truth: of the data set.
        results: of images and categories of ``truth``; may be empty.
        backend: of :data:`BACKENDS`.
        img_ids: evaluate on these images only; None: all.
        max_dets: limits of the detections of an image and class, by score; the largest counts for AP.
    """
    chosen = set(truth.image_names if img_ids is None else img_ids)
    limits = sorted(max_dets)
    part = truth if img_ids is None else truth.of_images(chosen)
    found = BACKENDS[backend](part, [box for box in results if box["image_id"] in chosen], chosen, limits)
    return BoxEvaluation(found, _summarize(found["precision"], found["recall"]))


def choose_backend(name: str) -> str:
    """The backend that a name stands for: itself, or for "auto" the fastest that is installed.

    Raises:
        ConfigError: an unknown name, or a backend that is not installed.
    """
    if name == "auto":
        return _fastest()
    if name not in BACKENDS:
        raise ConfigError(f"evaluator backend is {name!r}; it must be auto, {' or '.join(BACKENDS)}")
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"evaluator backend {name!r} is not installed: pip install {name}, or take 'auto'")
    return name


@lru_cache(maxsize=1)
def _fastest() -> str:
    if importlib.util.find_spec("hotcoco") is not None:
        return "hotcoco"
    logging.getLogger(__name__).info(
        "hotcoco is not installed: COCO metrics by pycocotools, with the same numbers in more time"
    )
    return "pycocotools"


def _by_pycocotools(
    truth: Truth, results: Boxes, images: set[Any], limits: list[int]
) -> dict[str, np.ndarray]:
    with contextlib.redirect_stdout(io.StringIO()):
        true = truth_as_coco(truth)
        if results:
            # It writes into what it is given.
            predicted = true.loadRes([dict(box) for box in results])
        else:
            # which loadRes refuses
            predicted = COCO()
            predicted.dataset = {**true.dataset, "annotations": []}
            predicted.createIndex()
        evaluation = COCOeval(true, predicted, "bbox")
        evaluation.params.imgIds = list(images)
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
    return {name: evaluation.eval[name] for name in ("precision", "recall")}


def truth_as_coco(truth: Truth) -> COCO:
    """The truth as pycocotools keeps it; it takes an annotation id 0 for "not matched", so they count from 1."""
    columns = (truth.image_ids, truth.category_ids, truth.boxes, truth.areas, truth.crowd.astype(np.int64))
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": id_} for id_ in truth.image_names],
        "categories": [{"id": id_, "name": name} for id_, name in truth.class_names.items()],
        "annotations": [
            {"id": number, **dict(zip(keys, row))}
            for number, row in enumerate(zip(*(column.tolist() for column in columns)), start=1)
        ],
    }
    coco.createIndex()
    return coco


def _by_hotcoco(truth: Truth, results: Boxes, images: set[Any], limits: list[int]) -> dict[str, np.ndarray]:
    global _pool_owner
    if _pool_owner not in (None, os.getpid()):
        # Its threads stayed behind in the process that this one was forked from: it would wait for them for ever.
        logging.getLogger(__name__).warning(
            "hotcoco has run in the process that this one is a fork of: COCO metrics by pycocotools"
        )
        return _by_pycocotools(truth, results, images, limits)
    import hotcoco

    _pool_owner = os.getpid()
    # Ranks for ids: it takes integers only, and the order of images decides between equal scores.
    image_rank = {id_: rank for rank, id_ in enumerate(sorted(images), start=1)}
    category_rank = {id_: rank for rank, id_ in enumerate(sorted(truth.class_names), start=1)}
    known = hotcoco.COCO.from_arrays(
        [{"id": rank} for rank in image_rank.values()],
        [{"id": rank, "name": str(rank)} for rank in category_rank.values()],
        np.array([image_rank[id_] for id_ in truth.image_ids.tolist()], dtype=np.int64),
        np.array([category_rank[id_] for id_ in truth.category_ids.tolist()], dtype=np.int64),
        truth.boxes,
        area=truth.areas,
        iscrowd=truth.crowd.astype(np.int64),
    )
    image = np.array([image_rank[box["image_id"]] for box in results], dtype=np.int64)
    category = np.array([category_rank[box["category_id"]] for box in results], dtype=np.int64)
    xywh = np.array([box["bbox"] for box in results], dtype=np.float64).reshape(-1, 4)
    scores = np.array([box["score"] for box in results], dtype=np.float64)
    predicted = known.load_res(np.column_stack((image, xywh, scores, category)))
    evaluation = hotcoco.COCOeval(known, predicted, "bbox")
    evaluation.params.max_dets = limits
    evaluation.evaluate()
    evaluation.accumulate()
    return {name: evaluation.eval[name] for name in ("precision", "recall")}


_pool_owner: int | None = None
"""The process in which hotcoco has started its threads."""

BACKENDS: dict[str, Callable[[Truth, Boxes, set[Any], list[int]], dict[str, np.ndarray]]] = {
    "pycocotools": _by_pycocotools,
    "hotcoco": _by_hotcoco,
}
"""Backends by the name of their package."""


def _summarize(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """COCO's twelve figures, means over what has truth; equal to pycocotools' for its own limits.

    pycocotools' function looks for a limit of 100 and gives -1 with another one.
    """
    thresholds = list(np.round(Params("bbox").iouThrs, 2))
    half, three_quarters = thresholds.index(0.5), thresholds.index(0.75)
    parts = [
        precision[..., 0, -1],
        precision[half, ..., 0, -1],
        precision[three_quarters, ..., 0, -1],
        *(precision[..., area, -1] for area in (1, 2, 3)),
        *(recall[..., 0, limit] for limit in (0, 1, 2)),
        *(recall[..., area, -1] for area in (1, 2, 3)),
    ]
    valid = [part[part > -1] for part in parts]
    return np.array([np.mean(values) if len(values) else -1.0 for values in valid])
