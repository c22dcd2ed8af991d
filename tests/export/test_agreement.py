"""The comparison of detections, on cases with known answers."""

from __future__ import annotations

import pytest
import torch

from mokd_det.errors import ExportError
from mokd_det.export import Agreement, compare_detections, measure_agreement, pad_batch, photographs
from tests.export.small_models import from_config

BOXES = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 20.0], [1.0, 1.0, 2.0, 2.0]]])
SCORES = torch.tensor([[0.9, 0.5, 0.1]])
LABELS = torch.tensor([[3, 1, 3]])
SIDES = torch.tensor([100])


def test_equal_detections_agree_exactly() -> None:
    found = compare_detections((BOXES, SCORES, LABELS), (BOXES, SCORES, LABELS), SIDES, 1e-4)
    assert found == Agreement(0.0, 0.0, 1)


def test_distances_are_in_units_of_the_longer_side() -> None:
    moved = BOXES.clone()
    moved[0, 1, 3] += 5.0
    found = compare_detections((BOXES, SCORES, LABELS), (moved, SCORES + 0.00005, LABELS), SIDES, 1e-4)
    assert found.box == pytest.approx(0.05) and found.score == pytest.approx(5e-5, rel=1e-2)
    assert not found.within(1e-2) and found.within(0.06)


@pytest.mark.parametrize("change", ["label", "score", "shape", "nan"])
def test_what_differs_is_seen(change: str) -> None:
    boxes, scores, labels = BOXES.clone(), SCORES.clone(), LABELS.clone()
    if change == "shape":
        with pytest.raises(ExportError, match=r"shape \(1, 2\) instead of \(1, 3\)"):
            compare_detections(
                (BOXES, SCORES, LABELS), (boxes[:, :2], scores[:, :2], labels[:, :2]), SIDES, 1e-4
            )
        return
    if change == "label":
        labels[0, 0] = 2
    elif change == "score":
        scores[0, 1] += 0.01
    else:
        scores[0, 2] = float("nan")
    found = compare_detections((BOXES, SCORES, LABELS), (boxes, scores, labels), SIDES, 1e-4)
    assert not found.within(1e-4)


def test_ties_may_change_places_and_the_last_may_be_replaced() -> None:
    boxes, labels = BOXES.expand(1, 3, 4), torch.tensor([[1, 1, 4]])
    scores = torch.tensor([[0.5, 0.5 - 1e-6, 0.2]])
    swapped, other_labels = boxes[:, [1, 0, 2]], torch.tensor([[1, 1, 0]])
    assert compare_detections((boxes, scores, labels), (swapped, scores, other_labels), SIDES, 1e-4).within(
        1e-4
    )
    # but a replaced one in the middle of the list is a difference
    other_labels = torch.tensor([[1, 0, 4]])
    assert not compare_detections(
        (boxes, scores, labels), (swapped, scores, other_labels), SIDES, 1e-4
    ).within(1e-4)


def test_photographs_and_padding() -> None:
    images = photographs([(20, 30), (25, 10), (20, 30)])
    assert [tuple(image.shape) for image in images] == [(3, 20, 30), (3, 25, 10), (3, 20, 30)]
    assert all(image.dtype == torch.uint8 and image.float().std() > 10 for image in images)
    torch.testing.assert_close(images[0], images[2])
    batch, sizes = pad_batch(images, filling=7.0)
    assert batch.shape == (3, 3, 25, 30) and sizes.tolist() == [[20, 30], [25, 10], [20, 30]]
    assert torch.equal(batch[1, :, :25, :10], images[1].float()) and (batch[1, :, :, 10:] == 7).all()


def test_a_graph_that_cannot_run_is_reported_with_the_shape() -> None:
    def broken(images: torch.Tensor, sizes: torch.Tensor) -> None:
        raise ValueError("no such operator\nmore")

    with pytest.raises(ExportError, match=r"fails on images of shape \(1, 3, 40, 50\): no such operator$"):
        measure_agreement(from_config(), broken, [photographs([(40, 50)])])
