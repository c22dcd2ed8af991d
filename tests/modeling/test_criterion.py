"""Criterion and post-processing in isolation, on seeded tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mokd_det.errors import InvalidLossError
from mokd_det.layers import cxcywh_to_xyxy
from mokd_det.modeling import HungarianMatcher, SetCriterion, top_predictions
from mokd_det.modeling.targets import Targets

from . import golden

PARTS = golden.golden("golden_parts")
DTYPES = {"f64": torch.float64, "f32": torch.float32}
LEVELS = 7


def _predictions(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    shift = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=dtype)
    logits, raw = [], []
    for level in range(LEVELS):
        logits.append(torch.from_numpy(golden.noise(f"crit.logits.{level}", (2, 100, 91))).to(dtype) - 3)
        raw.append(torch.from_numpy(golden.noise(f"crit.boxes.{level}", (2, 100, 4))).to(dtype) - shift)
    return [x.requires_grad_() for x in logits], [x.requires_grad_() for x in raw]


def _criterion(**options: object) -> SetCriterion:
    return SetCriterion(num_classes=91, matcher=HungarianMatcher(), **options)


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("name", ["some", "one_empty", "all_empty"])
def test_losses_matching_and_gradients(name: str, precision: str) -> None:
    expected, dtype = PARTS["criterion"][name][precision], DTYPES[precision]
    rtol = {"f64": 1e-12, "f32": 1e-5}[precision]
    rows = golden.golden("golden_vidt_swin_nano")["targets"][name]
    targets = golden.targets(rows, dtype)
    logits, raw = _predictions(dtype)
    criterion = _criterion()
    boxes = torch.stack(raw).sigmoid()
    losses = criterion(torch.stack(logits), boxes, targets)
    for key, value in expected["losses"].items():
        if key.startswith("loss_"):
            assert losses[key].item() == pytest.approx(value, rel=rtol, abs=1e-14), key
    total = sum(criterion.weighted(losses).values())
    assert total.item() == pytest.approx(expected["total"], rel=rtol)
    matches = criterion.matcher(torch.stack(logits).detach(), boxes.detach(), targets)
    actual = [[[list(map(int, q)), list(map(int, t))] for q, t in level] for level in matches.per_level]
    assert actual == expected["matcher_by_level"]
    total.backward()
    for tensors, norms in ((logits, "grad_norm_logits"), (raw, "grad_norm_raw_boxes")):
        actual_norms = [x.grad.norm().item() for x in tensors]
        assert actual_norms == pytest.approx(expected[norms], rel=rtol, abs=1e-14)


@pytest.mark.parametrize("name", ["det100", "det300"])
def test_postprocess(name: str) -> None:
    case = PARTS["post"][name]
    logits = torch.from_numpy(golden.noise(f"post.{name}.logits", (2, case["queries"], 91))) - 3
    boxes = torch.from_numpy(golden.noise(f"post.{name}.boxes", (2, case["queries"], 4))).sigmoid()
    scores, labels, corners = top_predictions(logits, boxes, torch.tensor([[480, 640], [333, 500]]))
    with np.load(golden.FOLDER / "golden_parts.npz") as stored:
        for i in range(2):
            np.testing.assert_array_equal(labels[i], stored[f"post.{name}.{i}.labels"])
            np.testing.assert_allclose(scores[i], stored[f"post.{name}.{i}.scores"], rtol=1e-6)
            np.testing.assert_allclose(corners[i], stored[f"post.{name}.{i}.boxes"], rtol=1e-5, atol=1e-3)


def test_matching_minimises_the_summed_cost_of_each_image() -> None:
    """The batched cost tensor gives every image its own assignment, whatever the other images hold."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 9, 5, generator=generator)
    boxes = torch.rand(2, 3, 9, 4, generator=generator) * 0.5 + 0.2
    counts = (2, 0, 4)
    targets = Targets(
        torch.randint(0, 5, (6,), generator=generator),
        torch.rand(6, 4, generator=generator) * 0.5 + 0.2,
        counts,
    )
    matcher = HungarianMatcher()
    matches = matcher(logits, boxes, targets)
    for level in range(2):
        for image, (start, count) in enumerate(zip(targets.offsets, counts)):
            rows = slice(start, start + count)
            alone = matcher.costs(
                logits[level : level + 1, image : image + 1],
                boxes[level : level + 1, image : image + 1],
                targets.labels[None, rows],
                targets.boxes[None, rows],
            )[0, 0]
            expected = linear_sum_assignment(alone)
            np.testing.assert_array_equal(np.array(matches.per_level[level][image]), np.array(expected))
    assert len(matches.query) == 2 * sum(counts)
    assert matches.target.max() == 5


def test_more_objects_than_queries() -> None:
    """Every query gets an object, the other objects stay unmatched, and the losses are finite."""
    targets = Targets(torch.zeros(8, dtype=torch.int64), torch.rand(8, 4) * 0.5 + 0.2, (8,))
    losses = SetCriterion(num_classes=3, matcher=HungarianMatcher())(
        torch.randn(2, 1, 5, 3), torch.rand(2, 1, 5, 4) * 0.5 + 0.2, targets
    )
    assert all(torch.isfinite(value) for value in losses.values())


def test_nan_prediction_names_level_and_image() -> None:
    logits = torch.randn(2, 2, 5, 3)
    logits[1, 1, 0, 0] = float("nan")
    targets = Targets(torch.tensor([0, 1]), torch.full((2, 4), 0.5), (1, 1), ("a.png", "b.png"))
    targets = Targets(torch.tensor([0, 0]), targets.boxes, targets.counts, targets.names)
    with pytest.raises(InvalidLossError, match=r"level 1 .*'b\.png'"):
        HungarianMatcher()(logits, torch.full((2, 2, 5, 4), 0.5), targets)


def test_iou_aware_class_loss_by_hand() -> None:
    """One matched pair and one negative, against the formula written out."""
    logits = torch.tensor([[[[0.3], [-1.0]]]], dtype=torch.float64)
    boxes = torch.tensor([[[[0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]]]], dtype=torch.float64)
    targets = Targets(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.4, 0.2]], dtype=torch.float64), (1,))
    criterion = SetCriterion(num_classes=1, matcher=HungarianMatcher(), class_loss="iou_aware_bce")
    p, q = torch.sigmoid(logits[0, 0, :, 0])
    t = p**0.25 * 0.5**0.75
    expected = -(t * p.log() + (1 - t) * (1 - p).log()) - q**2 * (1 - q).log()
    assert criterion(logits, boxes, targets)["loss_ce"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_weights_choose_losses_and_levels_share_them() -> None:
    criterion = _criterion()
    named = {"loss_ce": torch.tensor(1.0), "loss_bbox_3": torch.tensor(1.0), "loss_giou_0": torch.tensor(1.0)}
    assert {k: v.item() for k, v in criterion.weighted(named).items()} == {
        "loss_ce": 2.0,
        "loss_bbox_3": 5.0,
        "loss_giou_0": 2.0,
    }
    with pytest.raises(ValueError, match="unknown losses \\['mask'\\]"):
        _criterion(weights={"ce": 1.0, "mask": 1.0})


def test_fewer_pairs_than_topk() -> None:
    scores, labels, boxes = top_predictions(
        torch.randn(1, 4, 3), torch.rand(1, 4, 4), torch.tensor([[10, 20]])
    )
    assert scores.shape == (1, 12) and labels.shape == (1, 12) and boxes.shape == (1, 12, 4)
    assert (scores.diff() <= 0).all()


def test_boxes_scale_with_the_original_size() -> None:
    box = torch.tensor([[[0.5, 0.25, 0.2, 0.1]]])
    corners = top_predictions(torch.zeros(1, 1, 1), box, torch.tensor([[100, 400]]))[2]
    torch.testing.assert_close(corners, cxcywh_to_xyxy(torch.tensor([[[200.0, 25.0, 80.0, 10.0]]])))


@pytest.mark.parametrize("channels", [3, 4])
def test_token_labels_by_hand(channels: int) -> None:
    """The first object covering a pixel labels it; channel 0 says that there is one."""
    masks = torch.zeros(2, 2, 4, dtype=torch.bool)
    masks[0, :, :2] = True
    masks[1, :, 1:3] = True
    targets = Targets(torch.tensor([1, 2]), torch.rand(2, 4), (2, 0), (), [masks, masks[:0]])
    weights = {"ce": 2.0, "bbox": 5.0, "giou": 2.0, "token_focal": 2.0}
    canvas = SetCriterion(num_classes=3, matcher=HungarianMatcher(), weights=weights)._label_canvas(
        targets, channels
    )
    shift = channels - 3
    expected = torch.zeros(2, channels, 2, 4)
    expected[0, 0, :, :3] = 1
    expected[0, 1 + shift, :, :2] = 1
    expected[0, 2 + shift, :, 2] = 1
    torch.testing.assert_close(canvas, expected)


def test_token_classifier_of_the_wrong_size() -> None:
    targets = Targets(torch.zeros(0, dtype=torch.int64), torch.rand(0, 4), (0,), (), [torch.zeros(0, 2, 2)])
    with pytest.raises(ValueError, match="has 9 outputs; 3 classes need one more"):
        SetCriterion(num_classes=3, matcher=HungarianMatcher())._label_canvas(targets, 9)
