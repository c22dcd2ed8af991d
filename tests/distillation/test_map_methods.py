"""PKD, MGD, FGD and foundation features: numbers written out cell by cell, padding, and detectors of all kinds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torchvision.models.detection import fcos_resnet50_fpn

from mokd_det.distillation import FGD, MGD, PKD, Combined, Distiller, FoundationFeatures, Method
from mokd_det.distillation.context import MethodContext, Objects, batch_context
from mokd_det.distillation.methods.fgd import RelationBlock
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap, TapSpec
from mokd_det.modeling import TorchvisionDetector
from tests.distillation.method_goldens import set_up
from tests.distillation.test_hungarian_matching import scenes, vidt
from tests.distillation.test_unedited_detectors import retinanet

EXACT = {"rel": 1e-9, "abs": 0.0}
B, H, W = 2, 3, 4
WIDTHS = (4, 3)  # of the unpadded part of each image, in cells
OBJECTS = (
    Objects(  # stride 8: cells (rows 0–1, columns 0–2), the smaller (row 1, columns 1–2); none in the second
        (torch.tensor([[0.0, 3.0, 17.0, 16.0], [8.0, 8.0, 24.0, 15.0]]), torch.zeros(0, 4)),
        (torch.tensor([1, 0]), torch.zeros(0, dtype=torch.int64)),
        ((24, 32), (24, 24)),
    )
)
CONTEXT = MethodContext(objects=OBJECTS)
METHODS: dict[str, Callable[[], Method]] = {
    "pkd": PKD,
    "mgd": lambda: MGD(ratio=0.0),
    "mgd mean": lambda: MGD(ratio=0.0, reduction="mean"),
    "fgd": FGD,
    "fgd fixed": lambda: FGD(learn_teacher_relation=False),
    "foundation": FoundationFeatures,
}


def taps(channels: int, wave: Any, phase: float, width: int = W) -> dict[str, list[FeatureMap]]:
    """One map of float64 numbers whose padded cells are 7, far from the others."""
    tensor = torch.full((B, channels, H, width), 7.0, dtype=torch.float64)
    values = wave((B, channels, H, W), phase)
    padding = torch.ones(B, H, width, dtype=torch.bool)
    for image, columns in enumerate(WIDTHS):
        tensor[image, :, :, :columns] = values[image, :, :, :columns]
        padding[image, :, :columns] = False
    return {"patch": [FeatureMap(tensor.requires_grad_(), padding, 8)]}


def ready(method: Method, student: Any, teacher: Any) -> Method:
    """Set up in float64, all parameters away from their special starts."""
    set_up(method, student, teacher).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return method


def cells() -> list[tuple[int, int, int]]:
    return [(b, y, x) for b in range(B) for y in range(H) for x in range(WIDTHS[b])]


def test_pkd(wave) -> None:
    student, teacher = taps(2, wave, 0.3), taps(2, wave, 1.1)
    total = 0.0
    for channel in range(2):
        columns = []
        for side in (student, teacher):
            values = [side["patch"][0].tensor[b, channel, y, x].item() for b, y, x in cells()]
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
            columns.append([(v - mean) / math.sqrt(variance) for v in values])
        total += sum((s - t) ** 2 for s, t in zip(*columns, strict=True)) / len(columns[0])
    method = ready(PKD(eps=0.0), student, teacher)
    assert method(student, teacher)["patch"].item() == pytest.approx(total / 2 / 2, **EXACT)


def test_pkd_is_one_minus_the_correlation_and_blind_to_scale(wave) -> None:
    student, teacher = taps(2, wave, 0.3), taps(2, wave, 1.1)
    method = ready(PKD(eps=0.0), student, teacher)
    columns = [torch.stack([m.tensor[b, :, y, x] for b, y, x in cells()], 1) for m in
               (student["patch"][0], teacher["patch"][0])]  # fmt: skip
    correlations = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*columns, strict=True)]
    unbiased = (len(cells()) - 1) / len(cells())
    expected = sum(1 - rho for rho in correlations) / 2 * unbiased
    assert method(student, teacher)["patch"].item() == pytest.approx(expected.item(), rel=1e-9)
    scaled = [FeatureMap(3 * m.tensor + 2, m.padding_mask, m.stride) for m in student["patch"]]
    assert method({"patch": scaled}, teacher)["patch"].item() == pytest.approx(expected.item(), rel=1e-9)


def convolve(maps: list, weight: Tensor, bias: Tensor, width: int) -> list:
    """3 × 3 convolution of [channel][row][column]; nothing outside of the image."""
    outputs, inputs = weight.shape[:2]
    result = [[[0.0] * width for _ in range(H)] for _ in range(outputs)]
    for o in range(outputs):
        for y in range(H):
            for x in range(width):
                total = bias[o].item()
                for i in range(inputs):
                    for dy in (-1, 0, 1):
                        for dx in (-1, 0, 1):
                            if 0 <= y + dy < H and 0 <= x + dx < width:
                                total += weight[o, i, dy + 1, dx + 1].item() * maps[i][y + dy][x + dx]
                result[o][y][x] = total
    return result


@pytest.mark.parametrize("mask", ["space", "channels"])
def test_mgd(wave, mask) -> None:
    student, teacher = taps(2, wave, 0.3), taps(3, wave, 1.1)
    method = ready(MGD(mask=mask, ratio=0.4), student, teacher)
    shape = (B, 1, H, W) if mask == "space" else (B, 3, 1, 1)
    torch.manual_seed(11)
    kept = (torch.rand(shape) >= 0.4).double().expand(B, 3, H, W)
    assert 0 < kept.mean() < 1
    adapter, generator = method.adapters["patch_stride8"], method.generators["patch_stride8"]
    total = 0.0
    for b in range(B):
        source = student["patch"][0].tensor[b]
        adapted = [
            [
                [
                    kept[b, o, y, x].item()
                    * (
                        adapter.bias[o].item()
                        + sum(adapter.weight[o, i, 0, 0].item() * source[i, y, x].item() for i in range(2))
                    )
                    for x in range(WIDTHS[b])
                ]
                for y in range(H)
            ]
            for o in range(3)
        ]
        hidden = convolve(adapted, generator.first.weight, generator.first.bias, WIDTHS[b])
        hidden = [[[max(v, 0.0) for v in row] for row in channel] for channel in hidden]
        made = convolve(hidden, generator.second.weight, generator.second.bias, WIDTHS[b])
        for o in range(3):
            for y in range(H):
                for x in range(WIDTHS[b]):
                    total += (made[o][y][x] - teacher["patch"][0].tensor[b, o, y, x].item()) ** 2
    torch.manual_seed(11)
    assert method(student, teacher)["patch"].item() == pytest.approx(total / B, **EXACT)
    method.reduction = "mean"
    torch.manual_seed(11)
    assert method(student, teacher)["patch"].item() == pytest.approx(total / (3 * len(cells())), **EXACT)


def related(block: RelationBlock, maps: Tensor, b: int) -> dict[tuple[int, int, int], float]:
    """R(F) of one image, [channel, row, column]."""
    places = [(y, x) for image, y, x in cells() if image == b]
    channels = maps.shape[1]
    scores = [
        block.attention.bias.item()
        + sum(block.attention.weight[0, c].item() * maps[b, c, y, x].item() for c in range(channels))
        for y, x in places
    ]
    total = sum(math.exp(score) for score in scores)
    context = [
        sum(math.exp(s) / total * maps[b, c, y, x].item() for s, (y, x) in zip(scores, places, strict=True))
        for c in range(channels)
    ]
    hidden = [
        block.first.bias[h].item()
        + sum(block.first.weight[h, c].item() * context[c] for c in range(channels))
        for h in range(len(block.first.bias))
    ]
    mean = sum(hidden) / len(hidden)
    variance = sum((v - mean) ** 2 for v in hidden) / len(hidden)
    normed = [
        max(
            0.0,
            (v - mean) / math.sqrt(variance + 1e-5) * block.norm.weight[h].item() + block.norm.bias[h].item(),
        )
        for h, v in enumerate(hidden)
    ]
    added = [
        block.second.bias[c].item()
        + sum(block.second.weight[c, h].item() * normed[h] for h in range(len(normed)))
        for c in range(channels)
    ]
    return {(c, y, x): maps[b, c, y, x].item() + added[c] for c in range(channels) for y, x in places}


@pytest.mark.parametrize("learned", [True, False])
def test_fgd(wave, learned) -> None:
    channels, temperature = 4, 0.5
    student, teacher = taps(channels, wave, 0.3), taps(channels, wave, 1.1)
    method = ready(FGD(learn_teacher_relation=learned), student, teacher)
    key = "patch_stride8"
    blocks = (
        method.student_relations[key],
        method.teacher_relations[key] if learned else method.student_relations[key],
    )
    # by hand from OBJECTS: the larger box covers 2 × 3 cells, the smaller one 1 × 2
    scale = {(0, y, x): 1 / 6 for y in (0, 1) for x in (0, 1, 2)} | {(0, 1, 1): 1 / 2, (0, 1, 2): 1 / 2}
    expected = dict.fromkeys(("foreground", "background", "attention", "relation"), 0.0)
    for b in range(B):
        places = [(y, x) for image, y, x in cells() if image == b]
        outside = [p for p in places if (b, *p) not in scale]
        over_cells, over_channels = [], []
        for side in (student, teacher):
            maps = side["patch"][0].tensor
            size = {
                p: sum(abs(maps[b, c, p[0], p[1]].item()) for c in range(channels)) / channels for p in places
            }
            total = sum(math.exp(v / temperature) for v in size.values())
            over_cells.append({p: len(places) * math.exp(v / temperature) / total for p, v in size.items()})
            means = [
                sum(abs(maps[b, c, y, x].item()) for y, x in places) / len(places) for c in range(channels)
            ]
            total = sum(math.exp(v / temperature) for v in means)
            over_channels.append([channels * math.exp(v / temperature) / total for v in means])
        expected["attention"] += sum(abs(over_cells[0][p] - over_cells[1][p]) for p in places)
        expected["attention"] += sum(abs(s - t) for s, t in zip(*over_channels, strict=True))
        for y, x in places:
            for c in range(channels):
                difference = teacher["patch"][0].tensor[b, c, y, x] - student["patch"][0].tensor[b, c, y, x]
                square = difference.item() ** 2 * over_cells[1][y, x] * over_channels[1][c]
                if (b, y, x) in scale:
                    expected["foreground"] += scale[b, y, x] * square
                else:
                    expected["background"] += square / len(outside)
        of_s, of_t = (related(block, side["patch"][0].tensor, b)
                      for block, side in zip(blocks, (student, teacher), strict=True))  # fmt: skip
        expected["relation"] += sum((of_t[k] - of_s[k]) ** 2 for k in of_t)
    terms = method(student, teacher, CONTEXT)
    assert {name: value.item() for name, value in terms.items()} == {
        name: pytest.approx(value / B, **EXACT) for name, value in expected.items()
    }
    if not learned:
        alone = method.student_relations[key].second.bias
        (gradient,) = torch.autograd.grad(terms["relation"], alone)
        assert gradient.abs().sum() > 0  # through the student's side alone: with both it would cancel


def test_foundation_features(wave) -> None:
    student, teacher = taps(2, wave, 0.3), taps(3, wave, 1.1)
    method = ready(FoundationFeatures(), student, teacher)
    linear = method.projections["patch_stride8"]
    total = 0.0
    for b, y, x in cells():
        source, target = (side["patch"][0].tensor[b, :, y, x].tolist() for side in (student, teacher))
        made = [
            linear.bias[o].item() + sum(linear.weight[o, i].item() * source[i] for i in range(2))
            for o in range(3)
        ]
        dot = sum(p * q for p, q in zip(made, target, strict=True))
        total += 1 - dot / math.sqrt(sum(p * p for p in made) * sum(q * q for q in target))
    assert method(student, teacher)["patch"].item() == pytest.approx(total / len(cells()), **EXACT)


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_neither_values_nor_gradients(wave, name) -> None:
    """More padded columns, whatever stands in them, and no gradient to any of them."""
    results = []
    for width in (W, W + 3):
        student, teacher = taps(3, wave, 0.3, width), taps(3, wave, 1.1, width)
        method = ready(METHODS[name](), student, teacher)
        terms = method(student, teacher, CONTEXT)
        (gradient,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), student["patch"][0].tensor)
        assert gradient[..., : min(WIDTHS)].abs().sum() > 0
        assert all(gradient[b, ..., columns:].abs().sum() == 0 for b, columns in enumerate(WIDTHS))
        results.append((terms, gradient[..., :W]))
    for term, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][term], value, rtol=1e-12, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-9, atol=1e-12)


def test_a_box_covers_at_least_one_cell_and_none_beyond_the_map() -> None:
    from mokd_det.distillation.methods.fgd import foreground_scale

    boxes = torch.tensor([[8.0, 8.0, 8.0, 8.0], [30.0, 20.0, 90.0, 90.0], [39.5, 2.0, 60.0, 3.0]])
    objects = Objects((boxes,), (torch.zeros(3, dtype=torch.int64),), ((24, 32),))
    found = foreground_scale(objects, 8, torch.ones(1, 3, 4, dtype=torch.float64))
    expected = torch.zeros(1, 3, 4, dtype=torch.float64)
    expected[0, 1, 1] = expected[0, 2, 3] = expected[0, 0, 3] = 1.0
    torch.testing.assert_close(found, expected)


MAPS = TapSpec("maps", (4,), (8,))


@pytest.mark.parametrize("make", [MGD, FGD, FoundationFeatures])
def test_tokens_are_refused(make) -> None:
    tokens = {"patch": TapSpec("tokens", (4,), num_tokens=3)}
    with pytest.raises(IncompatibleModelsError, match=rf"{make.__name__} reads maps at the tap 'patch'"):
        make().setup(tokens, tokens)


def test_what_a_method_lacks_is_said() -> None:
    with pytest.raises(IncompatibleModelsError, match="FGD reads the tap 'patch'"):
        FGD().setup({"neck": MAPS}, {"neck": MAPS})
    with pytest.raises(
        IncompatibleModelsError, match="without a projection 'patch_stride8' needs equal channels"
    ):
        PKD().setup({"patch": MAPS}, {"patch": TapSpec("maps", (5,), (8,))})
    for wrong in ({"ratio": 1.0}, {"mask": "time"}, {"reduction": "max"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            MGD(**wrong)
    method = FGD()
    method.setup({"patch": MAPS}, {"patch": MAPS})
    maps = {"patch": [FeatureMap(torch.ones(1, 4, 2, 2), None, 8)]}
    with pytest.raises(ConfigError, match="FGD needs each image's annotated objects"):
        method(maps, maps, MethodContext())


def test_the_context_of_detectron2s_batches() -> None:
    instances = Instances((48, 64))
    instances.gt_boxes, instances.gt_classes = Boxes(torch.tensor([[1.0, 2, 3, 4]])), torch.tensor([5])
    objects = batch_context([{"image": torch.zeros(3, 48, 64), "instances": instances}]).objects
    assert objects is not None and objects.sizes == ((48, 64),)
    assert objects.boxes[0].tolist() == [[1, 2, 3, 4]] and objects.classes[0].tolist() == [5]
    assert batch_context([{"image": torch.zeros(3, 48, 64)}]).objects is None
    assert batch_context(torch.zeros(2)) == MethodContext()


def fcos() -> nn.Module:
    return TorchvisionDetector(fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=10))


PYRAMID = {"path": "detector.backbone", "strides": [8, 16, 32, 64, 128], "channels": [256] * 5}
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Any]] = {
    "vidt": (lambda: vidt(5), lambda: vidt(9), "patch"),
    "detectron2": (
        lambda: retinanet(18, 16),
        lambda: retinanet(18, 16),
        {"path": "backbone", "strides": [8, 32]},
    ),
    "torchvision": (fcos, fcos, {**PYRAMID, "keep": [16, 32]}),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_all_of_them_train_every_kind_of_detector(pair) -> None:
    student, teacher, tap = PAIRS[pair]
    names = ("pkd", "mgd", "fgd", "foundation")
    method = Combined({name: METHODS[name]() for name in names})
    model = Distiller(student(), teacher(), method, taps={"patch": tap}).train()
    with EventStorage():
        losses = model(scenes())
    terms = {name: value for name, value in losses.items() if name.startswith("loss_distill_")}
    assert {name.split("_")[2] for name in terms} == set(names) and len(terms) == 7
    total = torch.stack([value / value.detach() for value in terms.values()]).sum()
    total.backward()
    assert total.isfinite()
    assert sum(p.grad.abs().sum() for p in model.student.parameters() if p.grad is not None) > 0
    trained = {name.split(".")[1] for name, p in method.named_parameters() if p.grad is not None}
    assert trained == {"mgd", "fgd", "foundation"} and all(p.grad is None for p in model.teacher.parameters())
