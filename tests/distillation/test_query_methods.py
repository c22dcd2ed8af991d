"""DETRDistill and KD-DETR: numbers written out pair by pair, decoders asked anew, and what they refuse."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mokd_det.distillation import (
    KDDETR,
    LD,
    Combined,
    DETRDistill,
    Distiller,
    HungarianTokenMatching,
    Method,
    TeacherCache,
)
from mokd_det.distillation.context import MethodContext, Objects
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap
from mokd_det.modeling import ViDT
from tests.distillation.method_goldens import spec
from tests.distillation.test_hungarian_matching import scenes, vidt

EXACT = {"rel": 1e-9, "abs": 0.0}
L, B, N, K = 2, 2, 3, 4
HEAD_TAPS = {name: name for name in ("patch", "head", "head_logits", "head_boxes")}
POINT_TAPS = {name: name for name in ("logits", "boxes")}


def boxes(wave: Any, shape: tuple[int, ...], phase: float) -> Tensor:
    """Relative to the image, of sides 0.1 to 0.5."""
    return wave((*shape, 4), phase, 0.2, 0.3) + torch.tensor([0.1, 0.15, 0.0, 0.05], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def l1(a: list[float], b: list[float]) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def giou(a: list[float], b: list[float]) -> float:
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b)
    )
    inter = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = a[2] * a[3] + b[2] * b[3] - inter
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inter / union - (hull - union) / hull


# --- KD-DETR ----------------------------------------------------------------------------------------------------


def test_kd_detr(wave) -> None:
    values, expected, temperature = [{}, {}], {}, 3.0
    for kind, points, phase in (("general", 2, 0.2), ("specific", N, 0.7)):
        logits_s, boxes_s = wave((L, B, points, K), phase, 2.0), boxes(wave, (L, B, points), phase)
        logits_t, boxes_t = wave((B, points, K), phase + 1, 2.0), boxes(wave, (B, points), phase + 1)
        values[0].update({f"{kind}_logits": logits_s, f"{kind}_boxes": boxes_s})
        names = ("logits", "boxes") if kind == "specific" else ("general_logits", "general_boxes")
        values[1].update(zip(names, (logits_t, boxes_t), strict=True))
        divergence = distance = overlap = total = 0.0
        for b, n in itertools.product(range(B), range(points)):
            weight = max(sigmoid(z) for z in logits_t[b, n].tolist())
            total += weight
            q = [math.exp(z / temperature) for z in logits_t[b, n].tolist()]
            q = [v / sum(q) for v in q]
            for level in range(L):
                p = [math.exp(z / temperature) for z in logits_s[level, b, n].tolist()]
                p = [v / sum(p) for v in p]
                kl = sum(x * math.log(x / y) for x, y in zip(q, p, strict=True)) / K
                divergence += weight * temperature**2 * kl
                pair = boxes_s[level, b, n].tolist(), boxes_t[b, n].tolist()
                distance += weight * l1(*pair)
                overlap += weight * (1 - giou(*pair))
        expected.update(
            {
                f"{kind}_class": divergence / B,
                f"{kind}_bbox": distance / total,
                f"{kind}_giou": overlap / total,
            }
        )
    values[0].update(logits=wave((B, N, K)), boxes=boxes(wave, (B, N), 0.0))  # not read: levels are
    method = KDDETR(general=2, temperature=temperature)
    method.setup(*({name: spec(side[name]) for name in POINT_TAPS} for side in values))
    terms = method(*values)
    assert {name: value.item() for name, value in terms.items()} == {
        name: pytest.approx(value, **EXACT) for name, value in expected.items()
    }


def test_a_decoder_asked_for_its_own_queries_answers_as_the_model() -> None:
    model, batch = vidt(7).eval(), scenes()
    images, mask = model.preprocess(batch)
    with torch.no_grad(), model.query_decoder() as decoder:
        predicted = model.forward_tensors(images, mask)
    with torch.no_grad():
        own = decoder.queries
        # no two of the references are equal, so each point finds its own query
        for queries in (own, decoder.queries_at(own.reference)):
            logits, found = decoder(queries)
            torch.testing.assert_close(logits, predicted.logits)
            torch.testing.assert_close(found, predicted.boxes)
        moved = decoder.queries_at(own.reference[:, :2] + 0.01)
        assert moved.content.shape == (2, 2, 64) and moved.position is not None
        torch.testing.assert_close(moved.reference, own.reference[:, :2] + 0.01)


def test_a_decoder_that_did_not_run_says_so() -> None:
    with vidt(7).query_decoder() as decoder:
        pass
    with pytest.raises(RuntimeError, match="did not run"):
        decoder.queries  # noqa: B018


def without_dropout(model: ViDT) -> ViDT:
    for layer in model.transformer.decoder.layers:
        layer.dropout = layer.self_attn.dropout = 0.0
    return model.double()


@pytest.mark.parametrize("make", [KDDETR, DETRDistill])
def test_a_teacher_equal_to_the_student_has_nothing_to_teach(make) -> None:
    student, batch = without_dropout(vidt(9)), scenes()
    taps = POINT_TAPS if make is KDDETR else HEAD_TAPS
    model = Distiller(student, copy.deepcopy(student), make(), taps=taps).train()
    student.backbone.eval()  # the stem normalises by the batch in training, which the teacher does not
    losses = {name.removeprefix("loss_distill_"): value.item() for name, value in model(batch).items()}
    if make is KDDETR:
        zero = [f"{kind}_{name}" for kind in ("general", "specific") for name in ("class", "bbox", "giou")]
        # levels before the last one are compared with it, so only equal levels are equal
        assert set(zero) <= set(losses) and all(losses[name] > 0 for name in zero)
        student.transformer.decoder.layers, student.transformer.num_layers = torch.nn.ModuleList(), 0
        model.teacher.transformer.decoder.layers, model.teacher.transformer.num_layers = (
            torch.nn.ModuleList(),
            0,
        )
        for network in (student, model.teacher):
            network.class_embed, network.bbox_embed = network.class_embed[:1], network.bbox_embed[:1]
        losses = {name.removeprefix("loss_distill_"): value.item() for name, value in model(batch).items()}
    else:
        zero = ["logits_bbox", "logits_giou", "features"]
        assert losses["logits_class"] > 0 and losses["prior_class"] > 0  # entropy of the targets; objects
    assert all(losses[name] == pytest.approx(0.0, abs=1e-6) for name in zero)


@pytest.mark.parametrize("queries", [(7, 11), (11, 7)])
def test_both_train_a_vidt_and_repeat(queries: tuple[int, int]) -> None:
    student, teacher = vidt(queries[0]), vidt(queries[1])
    method = Combined(
        {"points": KDDETR(general=5), "distill": DETRDistill()},
        {"points": list(POINT_TAPS), "distill": list(HEAD_TAPS)},
    )
    model = Distiller(student, teacher, method, taps={**HEAD_TAPS, **POINT_TAPS}).train()
    prepared = model.prepare_batch(scenes())
    assert set(prepared.teacher_answers) == {
        "points/general_points", "points/general_logits", "points/general_boxes", "points/specific_points",
        "distill/query_content", "distill/query_position", "distill/query_reference",
    }  # fmt: skip
    torch.manual_seed(4)
    losses = model(prepared)
    torch.manual_seed(4)
    again = model(prepared)
    terms = {name: value for name, value in losses.items() if name.startswith("loss_distill_")}
    assert len(terms) == 13 and all(value.isfinite() and value > 0 for value in terms.values())
    for name, value in losses.items():
        torch.testing.assert_close(again[name], value)
    for name in ("points_general_bbox", "distill_prior_class", "distill_logits_class", "distill_features"):
        trained = {key: p for key, p in student.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(
            losses[f"loss_distill_{name}"], list(trained.values()), retain_graph=True, allow_unused=True
        )
        pairs = zip(trained, gradients, strict=True)
        reached = {key.split(".")[0] for key, g in pairs if g is not None and g.abs().sum() > 0}
        assert "backbone" in reached
        assert ("transformer" in reached) == (name != "distill_features")
    assert not any(p.requires_grad for p in teacher.parameters())


def test_what_they_lack_is_said_before_training(fake_detector, tmp_path) -> None:
    tokens = {"logits": "neck", "boxes": "neck"}
    with pytest.raises(
        IncompatibleModelsError, match=r"KDDETR runs the student's decoder .* FakeDetector does not"
    ):
        Distiller(fake_detector(), fake_detector(), KDDETR(), taps=tokens)
    heads = {**HEAD_TAPS, "head_logits": "head", "head_boxes": "head"}
    with pytest.raises(IncompatibleModelsError, match=r"DETRDistill\(query_prior=True\) runs the student's"):
        Distiller(fake_detector(), fake_detector(), DETRDistill(), taps=heads)
    with pytest.raises(IncompatibleModelsError, match="reads the tap 'head_logits'"):
        Distiller(vidt(5), vidt(5), DETRDistill(), taps={"patch": "patch", "head": "head"})
    with pytest.raises(IncompatibleModelsError, match="student has 10 classes and the teacher 3"):
        Distiller(vidt(5), vidt(5, 3), KDDETR(), taps=POINT_TAPS)
    with pytest.raises(ConfigError, match="token_matching='hungarian' reorders queries, which KDDETR pairs"):
        Distiller(vidt(5), vidt(6), KDDETR(), taps=POINT_TAPS, token_matching="hungarian")
    cache = TeacherCache(str(tmp_path))
    with pytest.raises(ConfigError, match="asks the teacher at random points"):
        Distiller(vidt(5), vidt(6), KDDETR(), taps=POINT_TAPS, teacher_cache=cache)
    Distiller(vidt(5), vidt(6), KDDETR(general=0), taps=POINT_TAPS, teacher_cache=cache)
    for wrong in ({"general": 0, "specific": False}, {"general": -1}, {"temperature": 0}):
        with pytest.raises(ConfigError):
            KDDETR(**wrong)
    with pytest.raises(ConfigError, match="all off"):
        DETRDistill(False, False, False)


# --- DETRDistill ------------------------------------------------------------------------------------------------


def ready(method: Method, student: dict, teacher: dict) -> Method:
    method.setup(*({name: spec(side[name]) for name in method.required_taps} for side in (student, teacher)))
    method.double()
    with torch.no_grad():
        for index, parameter in enumerate(method.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter).roll(index))
    return method


def test_detr_distills_soft_targets(wave) -> None:
    """The teacher has a level more and a query less."""
    student = {"head_logits": wave((L, B, N, K), 0.1, 2.0), "head_boxes": boxes(wave, (L, B, N), 0.1)}
    teacher = {
        "head_logits": wave((L + 1, B, N - 1, K), 0.9, 2.0),
        "head_boxes": boxes(wave, (L + 1, B, N - 1), 0.9),
    }
    expected = dict.fromkeys(("logits_class", "logits_bbox", "logits_giou"), 0.0)
    for level, b in itertools.product(range(L), range(B)):
        best = None
        for chosen in itertools.permutations(range(N), N - 1):
            cost, terms = 0.0, [0.0, 0.0, 0.0]
            for t, s in enumerate(chosen):
                z_s, z_t = (side["head_logits"][k, b, i].tolist()
                            for side, k, i in ((student, level, s), (teacher, level + 1, t)))  # fmt: skip
                pair = (
                    student["head_boxes"][level, b, s].tolist(),
                    teacher["head_boxes"][level + 1, b, t].tolist(),
                )
                p, q = ([sigmoid(z) for z in logits] for logits in (z_s, z_t))
                cost += l1(p, q) + 5 * l1(*pair) - 2 * giou(*pair)
                terms[0] -= sum(
                    y * math.log(x) + (1 - y) * math.log(1 - x) for x, y in zip(p, q, strict=True)
                )
                terms[1] += l1(*pair)
                terms[2] += 1 - giou(*pair)
            if best is None or cost < best[0]:
                best = cost, terms
        assert best is not None
        for name, value in zip(expected, best[1], strict=True):
            expected[name] += value / (B * (N - 1))
    method = ready(DETRDistill(features=False, query_prior=False), student, teacher)
    terms = method(student, teacher)
    assert {name: value.item() for name, value in terms.items()} == {
        name: pytest.approx(value, **EXACT) for name, value in expected.items()
    }


def test_detr_distills_features(wave) -> None:
    padding = torch.zeros(B, 2, 3, dtype=torch.bool)
    padding[1, :, 2] = True
    student, teacher = (
        {
            "patch": [
                FeatureMap(wave((B, channels, 2, 3), phase), padding, 8),
                FeatureMap(wave((B, channels, 1, 1), phase + 0.3), None, 16),
            ],
            "head": wave((L, B, N, channels), phase + 0.5),
            "head_logits": wave((L, B, N, K), phase, 2.0),
            "head_boxes": boxes(wave, (L, B, N), phase),
        }
        for channels, phase in ((2, 0.2), (3, 1.3))
    )
    method = ready(DETRDistill(logits=False, query_prior=False), student, teacher)
    total, count = 0.0, 0
    for b in range(B):
        rows = []
        for level, (height, width) in enumerate(((2, 3), (1, 1))):
            layer = method.adapters[f"patch_stride{8 * 2**level}"]
            for y, x in itertools.product(range(height), range(width)):
                if level == 0 and bool(padding[b, y, x]):
                    continue
                source, target = (
                    side["patch"][level].tensor[b, :, y, x].tolist() for side in (student, teacher)
                )
                made = [
                    layer.bias[o].item() + sum(layer.weight[o, i].item() * source[i] for i in range(2))
                    for o in range(3)
                ]
                mask = 0.0
                for n in range(N):
                    state = teacher["head"][-1, b, n].tolist()
                    score = max(sigmoid(z) for z in teacher["head_logits"][-1, b, n].tolist())
                    norms = math.sqrt(sum(v * v for v in state) * sum(v * v for v in target))
                    mask += score * sum(u * v for u, v in zip(state, target, strict=True)) / norms
                rows.append((max(mask, 1e-2), target, made))
        largest = max(row[0] for row in rows)
        assert min(row[0] for row in rows) == 1e-2  # the clamp is at work
        for mask, target, made in rows:
            total += sum((mask / largest * (u - v)) ** 2 for u, v in zip(target, made, strict=True)) / 3
            count += 1
    assert method(student, teacher)["features"].item() == pytest.approx(total / count, **EXACT)


def test_detr_distills_the_query_prior(wave) -> None:
    """Two objects in the first image, none in the second; the teacher assigns, the student is judged."""
    teacher = {"head_logits": wave((L, B, N, K), 0.9, 2.0), "head_boxes": boxes(wave, (L, B, N), 0.9)}
    student = {
        **{name: value.flip(2) for name, value in teacher.items()},
        "prior_logits": wave((L, B, N, K), 0.4, 2.0),
        "prior_boxes": boxes(wave, (L, B, N), 0.4),
    }
    corners = torch.tensor([[4.0, 6.0, 20.0, 30.0], [10.0, 2.0, 36.0, 20.0]], dtype=torch.float64)
    objects = Objects(
        (corners, corners[:0]),
        (torch.tensor([2, 0]), torch.zeros(0, dtype=torch.int64)),
        ((32, 40), (24, 40)),
    )
    goals = [
        [(x0 + x1) / 2 / 40, (y0 + y1) / 2 / 32, (x1 - x0) / 40, (y1 - y0) / 32]
        for x0, y0, x1, y1 in corners.tolist()
    ]
    labels = [2, 0]

    def cost(query: int, target: int) -> float:
        p = sigmoid(teacher["head_logits"][-1, 0, query, labels[target]].item())
        focal = -0.25 * (1 - p) ** 2 * math.log(p + 1e-8) + 0.75 * p**2 * math.log(1 - p + 1e-8)
        pair = teacher["head_boxes"][-1, 0, query].tolist(), goals[target]
        return 2 * focal + 5 * l1(*pair) - 2 * giou(*pair)

    chosen = min(
        itertools.permutations(range(N), 2), key=lambda c: sum(cost(query, t) for t, query in enumerate(c))
    )
    classes = distance = overlap = 0.0
    for level, b, n in itertools.product(range(L), range(B), range(N)):
        for k in range(K):
            p = sigmoid(student["prior_logits"][level, b, n, k].item())
            positive = b == 0 and n in chosen and labels[chosen.index(n)] == k
            classes += -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)
        if b == 0 and n in chosen:
            pair = student["prior_boxes"][level, b, n].tolist(), goals[chosen.index(n)]
            distance += l1(*pair)
            overlap += 1 - giou(*pair)
    method = ready(DETRDistill(logits=False, features=False), student, teacher)
    terms = method(student, teacher, MethodContext(objects=objects))
    expected = {"prior_class": classes / 2, "prior_bbox": distance / 2, "prior_giou": overlap / 2}
    assert {name: value.item() for name, value in terms.items()} == {
        name: pytest.approx(value, **EXACT) for name, value in expected.items()
    }
    with pytest.raises(ConfigError, match="needs each image's annotated objects"):
        method(student, teacher, MethodContext())


def test_the_assignment_of_detr_distill_has_its_papers_costs() -> None:
    matching = DETRDistill().matching
    assert isinstance(matching, HungarianTokenMatching)
    assert (matching.cost_class, matching.cost_bbox, matching.cost_giou) == (1.0, 5.0, 2.0)


# --- LD ---------------------------------------------------------------------------------------------------------


def test_ld(wave) -> None:
    bins, temperature = 3, 4.0
    student, teacher = (
        {"corners": wave((B, N, 4 * bins), phase, 3.0), "logits": wave((B, N, K), phase, 2.0)}
        for phase in (0.3, 1.2)
    )
    total = weight_sum = 0.0
    for b, n in itertools.product(range(B), range(N)):
        weight = max(sigmoid(z) for z in teacher["logits"][b, n].tolist())
        weight_sum += weight
        for side in range(4):
            p, q = (
                [
                    math.exp(v / temperature)
                    for v in x["corners"][b, n, bins * side : bins * (side + 1)].tolist()
                ]
                for x in (student, teacher)
            )
            kl = sum(y / sum(q) * math.log(y / sum(q) / (x / sum(p))) for x, y in zip(p, q, strict=True))
            total += weight * temperature**2 * kl / 4
    method = ready(LD(temperature), student, teacher)
    assert method(student, teacher)["sides"].item() == pytest.approx(total / weight_sum, **EXACT)
    other = {**teacher, "corners": torch.zeros(B, N, 16)}
    with pytest.raises(
        IncompatibleModelsError, match="student's tap 'corners' has 12 numbers and the teacher's 16"
    ):
        ready(LD(), student, other)
    with pytest.raises(ConfigError, match="temperature"):
        LD(0.0)
