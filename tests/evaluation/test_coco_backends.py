"""Every backend of COCO's box metrics against pycocotools, on sets with everything that the rules treat apart."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import multiprocessing
from typing import Any

import numpy as np
import pytest
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mokd_det.data.truth import Truth
from mokd_det.errors import ConfigError
from mokd_det.evaluation import coco_backends
from mokd_det.evaluation.coco_backends import BACKENDS, choose_backend, evaluate_boxes

SIDES = (8.0, 31.9, 32.0, 32.1, 60.0, 95.9, 96.0, 96.1, 200.0)
"""Of boxes: their areas lie at, just below and just above COCO's limits of small, medium and large."""


def quiet(call, *arguments: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments)


def indexed(dataset: dict) -> COCO:
    made = COCO()
    made.dataset = dataset
    quiet(made.createIndex)
    return made


def as_truth(coco: COCO) -> Truth:
    """The same data as the project's own evaluation has them."""
    boxes = coco.dataset["annotations"]
    return Truth(
        "random",
        {image["id"]: str(image["id"]) for image in coco.dataset["images"]},
        {category["id"]: category["name"] for category in coco.dataset["categories"]},
        np.array([box["image_id"] for box in boxes], dtype=object),
        np.array([box["category_id"] for box in boxes], dtype=np.int64),
        np.array([box["bbox"] for box in boxes], dtype=np.float64).reshape(-1, 4),
        np.array([box["area"] for box in boxes], dtype=np.float64),
        np.array([box["iscrowd"] for box in boxes], dtype=bool),
    )


def random_set(seed: int, *, images: int = 12, classes: int = 4, many: int = 0) -> tuple[COCO, list[dict]]:
    """Truth and predictions: crowds, images without either, equal scores, boxes that repeat or graze a truth.

    The last class has no truth, the last but one no prediction; ids are neither ordered nor close.

    Args:
        many: predictions of one class on one image.
    """
    random = np.random.default_rng(seed)
    image_ids = random.choice(10_000, images, replace=False).tolist()
    class_ids = random.choice(200, classes, replace=False).tolist()
    annotations: list[dict] = []
    boxes: list[dict] = []

    def predict(image: int, category: int, bbox: list[float]) -> None:
        # few different scores: the order of equal ones counts
        score = float(random.choice([0.9, 0.7, 0.5, random.random()]))
        boxes.append({"image_id": image, "category_id": category, "bbox": bbox, "score": score})

    for place, image in enumerate(image_ids):
        for _ in range(0 if place % 5 == 0 else random.integers(1, 9)):
            category = class_ids[random.integers(0, classes - 1)]
            x, y = random.integers(0, 300, 2).tolist()
            w, h = random.choice(SIDES, 2).tolist()
            # Areas of crowds are those of their masks, and other than those of their boxes.
            crowd = int(random.random() < 0.25)
            annotations.append(
                {
                    "id": 1000 - len(annotations),
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": 0.7 * w * h if crowd else w * h,
                    "iscrowd": crowd,
                }
            )
            if place % 4 == 1 or category == class_ids[-2]:
                continue
            # An IoU of exactly 0.5, the box itself, and a shifted one.
            for bbox in ([x, y, w, h / 2], [x, y, w, h], [x + random.normal(0, 4), y, w, h]):
                if random.random() < 0.7:
                    predict(image, category, bbox)
        if place % 3 == 0:
            predict(image, class_ids[-1], [5.0, 5.0, 32.0, 32.0])
    for _ in range(many):
        x, y = random.normal(100, 30, 2).tolist()
        predict(image_ids[-1], class_ids[0], [x, y, *random.choice(SIDES, 2).tolist()])
    dataset = {
        "info": {},
        "images": [{"id": id_, "width": 640, "height": 480} for id_ in image_ids],
        "categories": [{"id": id_, "name": f"class{id_}"} for id_ in class_ids],
        "annotations": annotations,
    }
    return indexed(dataset), [boxes[i] for i in random.permutation(len(boxes))]


def official(
    truth: COCO, boxes: list[dict], img_ids: list | None = None, max_dets: tuple[int, ...] = (1, 10, 100)
) -> COCOeval:
    """pycocotools as everybody calls it; Detectron2's variant for other limits, whose summary heeds them."""
    if boxes:
        predicted = quiet(truth.loadRes, copy.deepcopy(boxes))
    else:
        predicted = indexed({**truth.dataset, "annotations": []})
    kind = COCOeval if max_dets[2] == 100 else COCOevalMaxDets
    evaluation = kind(truth, predicted, "bbox")
    evaluation.params.maxDets = list(max_dets)
    if img_ids is not None:
        evaluation.params.imgIds = img_ids
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        quiet(step)
    return evaluation


def check(truth: COCO, boxes: list[dict], backend: str, **settings: Any) -> np.ndarray:
    """Compares everything, per class too; returns the twelve figures."""
    before = copy.deepcopy(boxes)
    expected = official(truth, boxes, **settings)
    found = evaluate_boxes(as_truth(truth), boxes, backend=backend, **settings)
    np.testing.assert_allclose(found.stats, expected.stats, rtol=0, atol=1e-12)
    for name in ("precision", "recall"):
        assert found.eval[name].shape == expected.eval[name].shape
        np.testing.assert_allclose(found.eval[name], expected.eval[name], rtol=0, atol=1e-12)
    assert boxes == before
    return found.stats


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(12))
def test_equals_pycocotools_on_random_sets(backend: str, seed: int) -> None:
    truth, boxes = random_set(seed)
    assert any(annotation["iscrowd"] for annotation in truth.dataset["annotations"])
    stats = check(truth, boxes, backend)
    assert (stats >= 0).all() and 0.05 < stats[0] < 0.95


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_dets", [(1, 10, 100), (1, 10, 300), (1, 10, 15), (1, 10, 7)], ids=str)
def test_more_detections_than_the_limit(backend: str, max_dets: tuple[int, ...]) -> None:
    truth, boxes = random_set(50, many=250)
    check(truth, boxes, backend, max_dets=max_dets)


def test_limits_change_the_figures() -> None:
    """Else the test above could not fail."""
    truth, boxes = random_set(50, many=250)
    figures = {n: tuple(check(truth, boxes, "hotcoco", max_dets=(1, 10, n))) for n in (15, 100, 300)}
    assert len(set(figures.values())) == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detections_and_no_truth(backend: str) -> None:
    truth, boxes = random_set(3)
    assert check(truth, [], backend)[0] == 0
    nothing = indexed({**truth.dataset, "annotations": []})
    assert (check(nothing, boxes, backend) == -1).all()
    assert (check(nothing, [], backend) == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_some_of_the_images(backend: str) -> None:
    truth, boxes = random_set(4, images=20)
    some = sorted(truth.imgs)[::-2]
    stats = check(truth, boxes, backend, img_ids=some)
    assert stats[0] != check(truth, boxes, backend)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_may_be_names_or_negative(backend: str) -> None:
    truth, boxes = random_set(5)
    rename = {id_: f"image {id_}" for id_ in truth.imgs}
    dataset = copy.deepcopy(truth.dataset)
    for image in dataset["images"]:
        image["id"] = rename[image["id"]]
    for box in (*dataset["annotations"], *boxes):
        box["image_id"] = rename[box["image_id"]]
        box["category_id"] -= 500
    for category in dataset["categories"]:
        category["id"] -= 500
    check(indexed(dataset), boxes, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_equal_scores(backend: str) -> None:
    """Images in ascending order of id, and within one as given."""
    truth, boxes = random_set(6, many=120)
    for box in boxes:
        box["score"] = 0.5
    check(truth, boxes, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_without_area_and_scores_that_are_no_probabilities(backend: str) -> None:
    truth, boxes = random_set(7)
    for place, box in enumerate(boxes):
        if place % 4 == 0:
            box["bbox"] = [*box["bbox"][:3], 0.0]
        if place % 5 == 0:
            box["score"] = -3.5 * box["score"]
        if place % 7 == 0:
            box["bbox"] = [-1e4, -1e4, 2e4, 2e4]
    check(truth, boxes, backend)


def test_auto_takes_the_fast_one_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    coco_backends._fastest.cache_clear()
    assert choose_backend("auto") == "hotcoco"
    coco_backends._fastest.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, logger="mokd_det"):
        assert [choose_backend("auto") for _ in range(3)] == ["pycocotools"] * 3
    assert [r.message for r in caplog.records].count(
        "hotcoco is not installed: COCO metrics by pycocotools, with the same numbers in more time"
    ) == 1
    with pytest.raises(ConfigError, match="'hotcoco' is not installed: pip install hotcoco, or take 'auto'"):
        choose_backend("hotcoco")
    coco_backends._fastest.cache_clear()


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match=r"'coco'; it must be auto, pycocotools or hotcoco"):
        choose_backend("coco")


def _in_a_fork(queue: Any) -> None:
    truth, boxes = random_set(0)
    queue.put(evaluate_boxes(as_truth(truth), boxes, backend="hotcoco").stats.tolist())


def test_a_fork_of_a_process_that_has_evaluated_does_not_hang() -> None:
    """Threads do not survive a fork: hotcoco would wait for its own."""
    truth, boxes = random_set(0)
    expected = evaluate_boxes(as_truth(truth), boxes, backend="hotcoco").stats.tolist()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_in_a_fork, args=(queue,), daemon=True)
    process.start()
    process.join(60)
    alive = process.is_alive()
    process.kill()
    assert not alive and queue.get() == expected
