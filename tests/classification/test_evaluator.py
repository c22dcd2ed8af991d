"""The classification evaluator against computations by hand, and on two processes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from detectron2.evaluation import inference_on_dataset
from torch import nn

from mokd_det.classification import (
    ArrayDataset,
    ClassificationBatch,
    ClassificationEvaluator,
    build_classification_test_loader,
)
from mokd_det.classification.calibration import expected_calibration_error
from mokd_det.errors import ConfigError, DatasetError, InvalidLossError
from tests.classification import evaluator_workers
from tests.forks import launch


def dataset(labels, classes: int) -> ArrayDataset:
    return ArrayDataset(
        "toy", [f"c{i}" for i in range(classes)], labels, np.zeros((len(labels), 4, 4), np.uint8)
    )


def batch(labels, indices=None) -> ClassificationBatch:
    labels = torch.tensor(labels)
    indices = torch.arange(len(labels)) if indices is None else torch.tensor(indices)
    return ClassificationBatch(
        torch.zeros(len(labels), 3, 4, 4), labels, labels, indices, [f"image {i}" for i in indices.tolist()]
    )


def metrics(labels, logits, **options) -> dict[str, float]:
    logits = torch.as_tensor(logits, dtype=torch.float32)
    evaluator = ClassificationEvaluator(dataset(labels, logits.shape[1]), **options)
    evaluator.process(batch(labels), logits)
    return evaluator.evaluate()["classification"]


def test_accuracies_by_hand():
    logits = np.zeros((4, 7))
    logits[0, 2] = 1  # right
    logits[1, [0, 1, 3]] = [3, 2, 1]  # the third of seven
    logits[2, :5] = [5, 4, 3, 2, 1]  # class 6: one of the two that come last
    logits[3, 0] = 1  # right
    found = metrics([2, 3, 6, 0], logits)
    assert found["top1"] == 50.0 and found["top5"] == 75.0
    assert (found["top1-c2"], found["top1-c3"], found["top1-c6"], found["top1-c0"]) == (
        100.0,
        0.0,
        0.0,
        100.0,
    )
    assert math.isnan(found["top1-c1"])
    assert "top1-c2" not in metrics([2, 3, 6, 0], logits, per_class=False)


def test_equal_outputs_are_no_hit():
    """A model that says nothing predicts the first class; it is not right everywhere."""
    found = metrics(list(range(10)), np.zeros((10, 10)))
    assert found["top1"] == 10.0 and found["top5"] == 50.0
    assert found["ece"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 5])
def test_five_classes_or_fewer(classes):
    found = metrics([0, 1], np.eye(classes)[[1, 1]])
    assert found["top1"] == 50.0 and found["top5"] == 100.0


def test_calibration_error_by_hand():
    """Six samples, five bins: (0, .2] (.2, .4] … (.8, 1]; an edge belongs to the bin below."""
    confidence = np.array([0.3, 0.4, 0.55, 0.9, 0.95, 1.0])
    correct = np.array([False, True, True, True, False, True])
    bins = [abs(1 - 0.7), abs(1 - 0.55), abs(2 - 2.85)]
    assert expected_calibration_error(confidence, correct, 5) == pytest.approx(sum(bins) / 6)
    assert expected_calibration_error(np.array([0.2]), np.array([True]), 5) == pytest.approx(0.8)
    assert expected_calibration_error(np.array([0.0]), np.array([False]), 5) == 0.0
    assert math.isnan(expected_calibration_error(np.empty(0), np.empty(0, bool)))


def test_calibration_error_of_a_loop_over_bins():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.1, 1, 500)
    correct = generator.uniform(size=500) < confidence**2
    total = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, correct) == pytest.approx(total)


def test_calibration_error_of_logits():
    """Softmax of (ln 3, 0) is 3/4: two predictions of that confidence, one right."""
    found = metrics([0, 1], [[math.log(3), 0], [math.log(3), 0]])
    assert found["ece"] == pytest.approx(25.0, abs=1e-5)


def test_order_and_batches_change_nothing():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (11,), generator=generator).tolist()
    logits = torch.randn(11, 6, generator=generator)
    whole = metrics(labels, logits)
    evaluator = ClassificationEvaluator(dataset(labels, 6))
    for part in ([9, 10, 3], [0, 1, 2, 4], [5, 6, 7, 8]):
        evaluator.process(batch([labels[i] for i in part], part), logits[part])
    assert evaluator.evaluate()["classification"] == pytest.approx(whole, nan_ok=True)


def test_missing_and_repeated_images_are_errors():
    data = dataset([0, 1, 0, 1, 0], 2)
    evaluator = ClassificationEvaluator(data)
    with pytest.raises(DatasetError, match="5 of 5 images of toy were evaluated never"):
        evaluator.evaluate()
    evaluator.process(batch([0, 1, 0, 1]), torch.zeros(4, 2))
    with pytest.raises(DatasetError, match="1 of 5 images of toy were evaluated never, for instance image 4"):
        evaluator.evaluate()
    evaluator.process(batch([1, 0], [3, 4]), torch.zeros(2, 2))
    with pytest.raises(DatasetError, match=r"1 of 5 .* more than once, for instance image 3"):
        evaluator.evaluate()
    evaluator.reset()
    evaluator.process(batch([0], [5]), torch.zeros(1, 2))
    with pytest.raises(DatasetError, match="evaluated on image 5, which toy with its 5 images does not have"):
        evaluator.evaluate()


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (torch.zeros(2, 3), ConfigError, "predicts 3 classes, but toy has 2; model.num_classes must fit"),
        (torch.zeros(3, 2), ConfigError, r"output is \(3, 2\); .* must be logits \(2, number of classes\)"),
        ({"logits": 1}, ConfigError, "output is dict"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), InvalidLossError, "output for image 1 has NaN"),
    ],
)
def test_outputs_that_cannot_be_judged(outputs, error, message):
    with pytest.raises(error, match=message):
        ClassificationEvaluator(dataset([0, 1], 2)).process(batch([0, 1]), outputs)


def test_impossible_bins():
    with pytest.raises(ConfigError, match="bins=0"):
        ClassificationEvaluator(dataset([0], 1), bins=0)


def test_two_processes_evaluate_each_of_an_odd_number_of_images_once(tmp_path):
    size = 7
    data = evaluator_workers.numbered_images(size)
    model = evaluator_workers.FirstPixels()
    alone = inference_on_dataset(
        model,
        build_classification_test_loader(data, evaluator_workers.pixels, 2),
        ClassificationEvaluator(data),
    )
    assert isinstance(model, nn.Module) and 0 < alone["classification"]["top1"] < 100
    assert launch(evaluator_workers.evaluate_to, 2, args=(str(tmp_path), size)) == 0
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert results[0]["results"] == alone and results[1]["results"] == {}
    assert sorted(results[0]["seen"] + results[1]["seen"]) == list(range(size))
