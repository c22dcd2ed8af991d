"""CrossKD: numbers written out cell by cell, the gradient through the teacher's head, and real dense detectors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn

from mokd_det.distillation import PKD, Combined, CrossKD, Distiller, TapRecorder
from mokd_det.distillation.taps import TapSource
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap, TapSpec
from mokd_det.modeling import DenseHead, TorchvisionDetector
from tests.distillation.method_goldens import spec
from tests.distillation.test_hungarian_matching import scenes, vidt
from tests.distillation.test_map_methods import PYRAMID, WIDTHS, B, H, W, cells, convolve
from tests.distillation.test_map_methods import H as ROWS
from tests.distillation.test_query_methods import giou, sigmoid
from tests.distillation.test_unedited_detectors import retinanet

EXACT = {"rel": 1e-9, "abs": 0.0}
OUTPUTS = {"deltas": 4, "distances": 4, "bins": 12}


class Dense(nn.Module):
    """Two heads of two convolutions and a predictor; K classes, A anchors."""

    def __init__(self, coding: str = "deltas", anchors: int = 1, channels: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.coding = coding

        def tower() -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
            )  # fmt: skip

        self.towers = nn.ModuleList([tower(), tower()])
        self.predictors = nn.ModuleList(
            nn.Conv2d(channels, anchors * outputs, 3, padding=1) for outputs in (classes, OUTPUTS[coding])
        )

    def dense_heads(self) -> dict[str, DenseHead]:
        return {
            "class": DenseHead("towers.0", "predictors.0"),
            "box": DenseHead("towers.1", "predictors.1", self.coding),  # type: ignore[arg-type]
        }


def values(wave: Any, teacher: Dense, anchors: int, phase: float) -> dict[str, list[FeatureMap]]:
    padding = torch.ones(B, H, W, dtype=torch.bool)
    for image, columns in enumerate(WIDTHS):
        padding[image, :, :columns] = False
    shapes = {
        "patch": 2,
        "class_features": 2,
        "class_predictions": 3 * anchors,
        "box_features": 2,
        "box_predictions": OUTPUTS[teacher.coding] * anchors,
    }
    return {
        name: [FeatureMap(wave((B, channels, H, W), phase + i), padding, 8)]
        for i, (name, channels) in enumerate(shapes.items())
    }


def cross(module: Dense, index: int, student: Tensor, teacher: Tensor) -> list[list]:
    """Predictions of each image as [channel][row][column], by the teacher's statistics and the rest of its head."""
    aligned = torch.zeros_like(student)
    for c in range(student.shape[1]):
        moments = []
        for maps in (student, teacher):
            numbers = [maps[b, c, y, x].item() for b, y, x in cells()]
            mean = sum(numbers) / len(numbers)
            moments.append((mean, math.sqrt(sum((v - mean) ** 2 for v in numbers) / (len(numbers) - 1))))
        (mean_s, std_s), (mean_t, std_t) = moments
        # padded cells are moved too: the heads see them, as those of the models do
        for b, y, x in itertools.product(range(B), range(ROWS), range(W)):
            aligned[b, c, y, x] = (student[b, c, y, x] - mean_s) / std_s * std_t + mean_t
    conv, predictor = module.towers[index][2], module.predictors[index]
    found = []
    for b in range(B):
        hidden = convolve(aligned[b].tolist(), conv.weight, conv.bias, W)
        hidden = [[[max(v, 0.0) for v in row] for row in channel] for channel in hidden]
        found.append(convolve(hidden, predictor.weight, predictor.bias, W))
    return found


def box_distance(coding: str, cross_box: list[float], own: list[float]) -> float:
    if coding == "bins":
        total = 0.0
        for side in range(4):
            p, q = ([math.exp(v) for v in box[3 * side : 3 * side + 3]] for box in (cross_box, own))
            total += sum(y / sum(q) * math.log(y / sum(q) / (x / sum(p))) for x, y in zip(p, q, strict=True))
        return total / 4
    if coding == "deltas":
        return 1 - giou(*([x, y, math.exp(w), math.exp(h)] for x, y, w, h in (cross_box, own)))
    boxes = []
    for box in (cross_box, own):
        left, top, right, bottom = (max(v, 1e-6) for v in box)
        boxes.append([(right - left) / 2, (bottom - top) / 2, left + right, top + bottom])
    return 1 - giou(*boxes)


@pytest.mark.parametrize(("coding", "anchors"), [("deltas", 2), ("distances", 1), ("bins", 1)])
def test_values(wave, coding, anchors) -> None:
    module = Dense(coding, anchors).double()
    student, teacher = values(wave, module, anchors, 0.2), values(wave, module, anchors, 1.7)
    method = CrossKD(convolutions=1, eps=0.0)
    method.inspect(Dense(coding, anchors), module)
    method.setup({n: spec(v) for n, v in student.items()}, {n: spec(v) for n, v in teacher.items()})
    expected, total = [0.0, 0.0], 0.0
    found = [
        cross(module, i, student[f"{kind}_features"][0].tensor, teacher[f"{kind}_features"][0].tensor)
        for i, kind in enumerate(("class", "box"))
    ]
    size = OUTPUTS[coding]
    for b, y, x in cells():
        for a in range(anchors):
            q = [sigmoid(teacher["class_predictions"][0].tensor[b, 3 * a + k, y, x].item()) for k in range(3)]
            for k in range(3):
                p = sigmoid(found[0][b][3 * a + k][y][x])
                expected[0] -= abs(p - q[k]) * (q[k] * math.log(p) + (1 - q[k]) * math.log(1 - p))
            mine = [found[1][b][size * a + i][y][x] for i in range(size)]
            own = [teacher["box_predictions"][0].tensor[b, size * a + i, y, x].item() for i in range(size)]
            expected[1] += max(q) * box_distance(coding, mine, own)
            total += max(q)
    terms = method(student, teacher)
    assert {name: value.item() for name, value in terms.items()} == {
        name: pytest.approx(value / total, **EXACT)
        for name, value in zip(("class", "box"), expected, strict=True)
    }


def torchvision(build: Any, classes: int = 10) -> nn.Module:
    return TorchvisionDetector(build(weights=None, weights_backbone=None, num_classes=classes))


MODELS: dict[str, tuple[Any, Any]] = {
    "fcos": (lambda: torchvision(fcos_resnet50_fpn), PYRAMID),
    "detectron2": (lambda: retinanet(18, 16), "backbone"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_passes_the_teachers_head_and_not_the_students_end(name) -> None:
    make, tap = MODELS[name]
    cuts = {"fcos": 3, "detectron2": 1}
    if name == "detectron2":  # its test's heads have one convolution; the cut needs one to follow

        def make() -> nn.Module:
            return retinanet(18, 16, convolutions=2)

    model = Distiller(make(), make(), CrossKD(convolutions=cuts[name]), taps={"patch": tap}).train()
    with EventStorage():
        losses = model(scenes())
    loss = losses["loss_distill_class"] + losses["loss_distill_box"]
    assert set(losses) >= {"loss_distill_class", "loss_distill_box"} and loss.isfinite() and loss > 0
    loss.backward()
    reached = {
        key for key, p in model.student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    heads = {key for key in reached if "head" in key}
    assert heads and any("backbone" in key for key in reached)
    assert not any(
        part in key for key in heads for part in ("cls_logits", "bbox_reg", "cls_score", "bbox_pred")
    )
    assert all(p.grad is None for p in model.teacher.parameters())
    assert not list(model.method.parameters())


def test_what_does_not_fit_is_said_before_training() -> None:
    taps = {"patch": PYRAMID}
    with pytest.raises(IncompatibleModelsError, match="ViDT has none"):
        Distiller(vidt(5), vidt(5), CrossKD(), taps={"patch": "patch"})
    fcos = torchvision(fcos_resnet50_fpn)
    with pytest.raises(IncompatibleModelsError, match="cut after convolutions=4; it takes 1"):
        Distiller(fcos, torchvision(fcos_resnet50_fpn), CrossKD(convolutions=4), taps=taps)
    with pytest.raises(IncompatibleModelsError, match=r"class head .* predictions have 10 and 90 channels"):
        Distiller(fcos, torchvision(retinanet_resnet50_fpn), CrossKD(), taps=taps)
    method = CrossKD(convolutions=1)
    with pytest.raises(
        IncompatibleModelsError, match="student's head predicts distances and the teacher's deltas"
    ):
        method.inspect(Dense("distances"), Dense("deltas"))
    with pytest.raises(IncompatibleModelsError, match=r"class head .* have 3 and 2"):
        method.inspect(Dense(channels=3), Dense())
    with pytest.raises(IncompatibleModelsError, match="CrossKD reads the tap 'patch'"):
        CrossKD().setup({"neck": TapSpec("maps", (2,), (8,))}, {"neck": TapSpec("maps", (2,), (8,))})
    with pytest.raises(ConfigError, match="beta"):
        CrossKD(beta=-1)


def test_beside_another_method() -> None:
    model = Distiller(
        torchvision(fcos_resnet50_fpn), torchvision(fcos_resnet50_fpn),
        Combined({"cross": CrossKD(), "pkd": PKD()}), taps={"patch": PYRAMID},
    ).train()  # fmt: skip
    losses = {key for key in model(scenes()) if key.startswith("loss_distill_")}
    assert losses == {"loss_distill_cross_class", "loss_distill_cross_box", "loss_distill_pkd_patch"}


def test_a_module_that_runs_once_per_level_is_one_tap() -> None:
    module = nn.Conv2d(2, 3, 1)
    tap = {"path": "0", "strides": [8, 16], "channels": [3, 3], "per_level": True}
    maps = [torch.randn(1, 2, n, n) for n in (4, 2)]
    with TapRecorder(nn.Sequential(module), {"maps": tap}) as recorder:
        outputs = [module(m) for m in maps]
    for level, output, stride in zip(recorder.values["maps"], outputs, (8, 16), strict=True):
        assert level.tensor is output and level.stride == stride
    with TapRecorder(nn.Sequential(module), {"maps": tap}) as recorder:
        module(maps[0])
    with pytest.raises(IncompatibleModelsError, match="should deliver 2 maps"):
        recorder.values  # noqa: B018
    with pytest.raises(ConfigError, match="per_level=True is for maps"):
        TapSource.parse({"path": "0", "channels": 3, "per_level": True})
