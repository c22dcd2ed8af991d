#!/usr/bin/env python
"""Seconds of COCO's box metrics by pycocotools and by what is faster, on generated truth and predictions.

    python benchmarks/coco_evaluation.py --clock cpu --rounds 3 --warmup 0
    python benchmarks/coco_evaluation.py --images 500

From boxes in COCO's result format to the twelve figures and the precision of each class, as the evaluator runs it. The
sizes are COCO val2017's: 5,000 images, 80 classes, seven objects and 100 predictions per image, half of the predictions
near an object. faster-coco-eval takes part where it is installed. The figures of all are compared.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from functools import partial

import numpy as np
from harness import measure, options_of, parser_of

from mokd_det.data.truth import Truth
from mokd_det.evaluation.coco_backends import BACKENDS, evaluate_boxes, truth_as_coco


def generate(images: int, detections: int, classes: int) -> tuple[Truth, list[dict]]:
    """Truth and predictions, the same in every run."""
    random = np.random.default_rng(0)
    owners, labels_of, true, crowds, boxes = [], [], [], [], []
    for image in range(1, images + 1):
        count = random.poisson(7)
        xywh = np.concatenate((random.uniform(0, 400, (count, 2)), random.lognormal(4, 0.9, (count, 2))), 1)
        category = random.integers(1, classes + 1, count)
        owners += [image] * count
        labels_of.append(category)
        true.append(xywh)
        crowds.append(random.random(count) < 0.01)
        near = random.integers(0, count, detections // 2) if count else np.zeros(0, dtype=int)
        moved = xywh[near] + random.normal(0, 6, (len(near), 4))
        free = detections - len(near)
        other = np.concatenate((random.uniform(0, 400, (free, 2)), random.lognormal(4, 0.9, (free, 2))), 1)
        found = np.concatenate((moved, other)).clip(1).tolist()
        labels = np.concatenate((category[near], random.integers(1, classes + 1, free))).tolist()
        for box, label, score in zip(found, labels, random.random(detections).tolist(), strict=True):
            boxes.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
    all_true = np.concatenate(true)
    truth = Truth(
        "generated",
        {image: str(image) for image in range(1, images + 1)},
        {label: str(label) for label in range(1, classes + 1)},
        np.array(owners, dtype=np.int64),
        np.concatenate(labels_of),
        all_true,
        all_true[:, 2:].prod(axis=1),
        np.concatenate(crowds),
    )
    return truth, boxes


def by_faster_coco_eval(truth: Truth, boxes: list[dict]) -> np.ndarray:
    """The twelve figures."""
    from faster_coco_eval import COCO as FasterCOCO
    from faster_coco_eval import COCOeval_faster

    known = FasterCOCO(truth_as_coco(truth).dataset)
    evaluation = COCOeval_faster(known, known.loadRes([dict(box) for box in boxes]), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats[:12])


def main() -> None:
    parser = parser_of(__doc__, rounds=3, warmup=0)
    add = parser.add_argument
    add("--images", type=int, default=5000, metavar="N")
    add("--detections", type=int, default=100, metavar="N", help="per image (%(default)s)")
    add("--classes", type=int, default=80, metavar="N")
    options = options_of(parser)
    truth, boxes = generate(options.images, options.detections, options.classes)
    figures: dict[str, np.ndarray] = {}

    def call(name: str, evaluate: Callable[[], np.ndarray]) -> Callable[[], None]:
        def keep() -> None:
            figures[name] = evaluate()

        return keep

    def statistics(name: str) -> np.ndarray:
        return evaluate_boxes(truth, boxes, backend=name).stats

    calls = {
        name: call(name, partial(statistics, name))
        for name in BACKENDS
        if importlib.util.find_spec(name) is not None
    }
    if importlib.util.find_spec("faster_coco_eval") is not None:
        calls["faster-coco-eval"] = call("faster-coco-eval", lambda: by_faster_coco_eval(truth, boxes))
    measured = measure(calls, options, baseline="pycocotools")
    official = figures["pycocotools"]
    apart = {name: float(np.abs(found - official).max()) for name, found in figures.items()}
    measured.report(
        "coco_evaluation",
        settings={"images": options.images, "predictions": len(boxes), "classes": options.classes},
        json_file=options.json,
        columns={"largest difference of 12 figures": {name: f"{value:.1e}" for name, value in apart.items()}},
        further={"differences": apart, "stats": official.tolist()},
    )


if __name__ == "__main__":
    main()
