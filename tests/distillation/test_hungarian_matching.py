"""Queries of two detectors, matched by what they predict."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from torch import nn

from mokd_det.config import load_config
from mokd_det.distillation import (
    Distiller,
    HungarianTokenMatching,
    Method,
    MoKD,
    ProjectorMatching,
    TokenMatching,
    VkD,
)
from mokd_det.errors import ConfigError, IncompatibleModelsError, InvalidLossError
from mokd_det.layers.tap_point import TapSpec
from mokd_det.modeling import ViDT

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart" / "student.py"
METHODS = (TokenMatching, VkD, MoKD, lambda: ProjectorMatching("mlp"))


def vidt(queries: int = 16, classes: int = 10) -> ViDT:
    """The quick start's student, with weights that tell its queries apart."""
    node = load_config(str(QUICKSTART)).model
    node.backbone.num_det_tokens, node.num_classes = queries, classes
    torch.manual_seed(queries)
    model = instantiate(node)
    with torch.no_grad():
        for head in model.bbox_embed:
            head.layers[-1].weight.normal_(0, 0.3)
        for head in model.class_embed:
            head.weight.normal_(0, 0.3)
        model.backbone.det_token.normal_(0, 1)
    return model


def permuted(model: ViDT, order: torch.Tensor) -> ViDT:
    """The same detector with its queries in another order."""
    other = vidt(model.num_queries, model.num_classes)
    state = dict(model.state_dict())
    for name, value in state.items():
        axes = [axis for axis, size in enumerate(value.shape) if size == model.num_queries]
        if name.endswith(("det_token", "det_pos_embed", "reference_grid")):
            (axis,) = axes
            state[name] = value.index_select(axis, order)
    other.load_state_dict(state)
    return other


def scenes() -> list[dict[str, Any]]:
    batch = []
    for height, width in ((64, 64), (48, 64)):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor([[8.0, 10.0, 40.0, 44.0]]))
        instances.gt_classes = torch.tensor([3])
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        batch.append({"image": image, "height": height, "width": width, "instances": instances})
    return batch


def test_a_teacher_that_is_the_student_with_other_query_order_has_nothing_to_teach() -> None:
    student, batch = vidt(11).double(), scenes()
    order = torch.randperm(11)
    losses = {}
    for how in ("index", "hungarian"):
        model = Distiller(student, permuted(student, order).double(), TokenMatching(), token_matching=how)
        model.train()
        student.backbone.eval()  # the stem normalises by the batch in training, which the teacher does not
        losses[how] = model(batch)["loss_distill_tokens"].item()
    assert losses["index"] > 1 and losses["hungarian"] < 1e-4


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("queries", [(9, 16), (16, 9)])
def test_numbers_of_queries_may_differ_in_every_method(make: Any, queries: tuple[int, int]) -> None:
    batch = scenes()
    student, teacher = (vidt(count) for count in queries)
    with pytest.raises(IncompatibleModelsError, match=rf"\(B, {queries[0]}, 64\).*\(B, {queries[1]}, 64\)"):
        Distiller(student, teacher, make())
    model = Distiller(student, teacher, make(), token_matching="hungarian").train()
    losses = model(batch)
    distillation = sum(value for name, value in losses.items() if name.startswith("loss_distill_"))
    patch, neck, head = model.last_student_taps()[:4], *model.last_student_taps()[4:]
    assert len(patch) == 4 and neck.shape == (2, queries[0], 64) and head.shape == (3, 2, queries[0], 64)
    (gradient,) = torch.autograd.grad(distillation, [head])
    reached = gradient.abs().sum(-1) > 0
    # What the teacher has no query left for is compared with nothing, in every level alike.
    assert (reached.sum(-1) == min(queries)).all()
    assert (reached == reached[:1]).all()
    assert [set(found) for found in model.eval()(batch)] == [{"instances"}] * 2


def test_a_prepared_batch_carries_the_teachers_predictions() -> None:
    model = Distiller(vidt(), vidt(9), MoKD(), token_matching="hungarian").train()
    batch = scenes()
    prepared = model.prepare_batch(batch)
    assert {name: tuple(value.shape) for name, value in prepared.teacher_predictions.items()} == {
        "logits": (2, 9, 10),
        "boxes": (2, 9, 4),
    }
    assert set(prepared.teacher_taps) == {"patch", "neck", "head"}
    for name, value in model(batch).items():
        torch.testing.assert_close(model(prepared)[name], value)
    assert Distiller(vidt(), vidt(), MoKD()).prepare_batch(batch).teacher_predictions == {}


def test_the_matching_is_best_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)

    def predictions(queries: int) -> dict[str, torch.Tensor]:
        return {
            "logits": torch.randn(3, queries, 5, generator=generator).requires_grad_(),
            "boxes": torch.rand(3, queries, 4, generator=generator).requires_grad_(),
        }

    copies = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(self.shape) or original(self))
    matching = HungarianTokenMatching(cost_class=1.5, cost_bbox=4.0, cost_giou=2.5)
    for n_s, n_t in ((4, 4), (3, 5), (5, 3)):
        student, teacher = predictions(n_s), predictions(n_t)
        copies.clear()
        first, second = matching.assign(student, teacher)
        assert copies == [(3, n_s, n_t)], "one transfer for the whole batch"
        assert first.shape == second.shape == (3, min(n_s, n_t))
        costs = matching.costs(student["logits"], student["boxes"], teacher["logits"], teacher["boxes"])
        for image in range(3):
            cost = costs[image].detach().numpy()
            best = min(
                sum(cost[rows[k], columns[k]] for k in range(min(n_s, n_t)))
                for rows in itertools.combinations(range(n_s), min(n_s, n_t))
                for columns in itertools.permutations(range(n_t), min(n_s, n_t))
            )
            assert cost[first[image], second[image]].sum() == pytest.approx(best, rel=1e-5)
            assert np.all(np.diff(first[image]) > 0) and len(set(second[image].tolist())) == len(
                second[image]
            )


def test_the_cost_of_a_pair() -> None:
    logits = torch.tensor([[[0.0, 100.0]]]), torch.tensor([[[100.0, 100.0]]])
    # [0, 0.5]² in [0, 1]²: no hull beyond the union, IoU 1/4
    boxes = torch.tensor([[[0.25, 0.25, 0.5, 0.5]]]), torch.tensor([[[0.5, 0.5, 1.0, 1.0]]])
    cost = HungarianTokenMatching(1.0, 10.0, 100.0).costs(logits[0], boxes[0], logits[1], boxes[1])
    assert cost.item() == pytest.approx(0.5 + 10 * 1.5 - 100 * 0.25)
    empty = torch.tensor([[[0.5, 0.5, 0.0, 0.0]]])
    assert torch.isfinite(HungarianTokenMatching().costs(logits[0], empty, logits[1], empty)).all()
    half = HungarianTokenMatching().costs(*(value.bfloat16() for value in (*logits[:1], *boxes[:1]) * 2))
    assert half.dtype == torch.float32


def test_predictions_that_cannot_be_compared() -> None:
    taught = vidt(classes=7)
    with pytest.raises(IncompatibleModelsError, match=r"10 classes and the teacher 7.*cost_class=0"):
        Distiller(vidt(), taught, MoKD(), token_matching="hungarian")
    by_boxes = HungarianTokenMatching(cost_class=0)
    Distiller(vidt(), taught, MoKD(), token_matching=by_boxes).train()(scenes())
    bad = {"logits": torch.full((1, 2, 3), torch.nan), "boxes": torch.rand(1, 2, 4)}
    with pytest.raises(InvalidLossError, match="NaN or infinite for image 0"):
        HungarianTokenMatching().assign(bad, bad)
    queries = {
        "logits": TapSpec("tokens", (3,), num_tokens=2),
        "boxes": TapSpec("tokens", (4,), num_tokens=2),
    }
    for name, spec, message in (
        ("boxes", TapSpec("tokens", (5,), num_tokens=2), r"boxes \(B, 2, 5\)"),
        ("boxes", TapSpec("tokens", (4,), num_tokens=3), r"boxes \(B, 3, 4\)"),
        ("logits", TapSpec("tokens", (3,), num_tokens=2, num_levels=7), "one set of tokens"),
        ("logits", TapSpec("maps", (3,), (8,)), "one set of tokens"),
    ):
        with pytest.raises(IncompatibleModelsError, match=message):
            HungarianTokenMatching().check(queries, {**queries, name: spec})


class QueryModel(nn.Module):
    """A detector of another make: nothing is prepared, modules are tapped by path."""

    def __init__(self, queries: int, tokens: int = 7) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, 6))
        self.decoder = nn.Linear(6, 6)
        self.classes, self.boxes = nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 4), nn.Sigmoid())
        self.encoder = nn.Linear(3, 6)
        self.tokens = tokens

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        colours = torch.stack([item["image"].float().mean((1, 2)) / 255 for item in batched_inputs])
        context = self.encoder(colours[:, None].expand(-1, self.tokens, -1))
        states = self.decoder(self.queries + context.mean(1, keepdim=True))
        classes, boxes = self.classes(states), self.boxes(states)
        return {"loss_ce": classes.square().mean(), "loss_box": boxes.mean()} if self.training else []


def query_taps(queries: int, **more: Any) -> dict[str, Any]:
    return {
        "queries": {"path": "decoder", "channels": 6, "num_tokens": queries},
        "logits": {"path": "classes", "channels": 3, "num_tokens": queries},
        "boxes": {"path": "boxes", "channels": 4, "num_tokens": queries},
        **more,
    }


def test_models_of_another_make_are_matched_by_module_path() -> None:
    student, teacher = query_taps(5), query_taps(8)
    both = {name: {"student": student[name], "teacher": teacher[name]} for name in student}
    queries = {"queries": both.pop("queries")}
    model = Distiller(
        QueryModel(5), QueryModel(8), MoKD(), queries, token_matching="hungarian", prediction_taps=both
    )
    assert model.train()(scenes())["loss_distill_queries"] > 0
    encoder = {"encoder": {"path": "encoder", "channels": 6, "num_tokens": 7}}
    with pytest.raises(IncompatibleModelsError, match=r"'encoder' has 7 tokens, but.* 5 queries"):
        Distiller(
            QueryModel(5), QueryModel(8), MoKD(), encoder, token_matching="hungarian", prediction_taps=both
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_matching": "greedy"}, "token_matching='greedy' is not"),
        ({"prediction_taps": {"logits": "logits", "boxes": "boxes"}}, "for token_matching='hungarian' only"),
        (
            {"token_matching": "hungarian", "prediction_taps": {"logits": "logits"}},
            "needs 'logits' and 'boxes'",
        ),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Distiller(vidt(), vidt(), MoKD(), **options)


@pytest.mark.parametrize(
    ("costs", "message"), [((-1, 1, 1), "cost_class=-1 is negative"), ((0, 0, 0), "all costs.*weigh 0")]
)
def test_wrong_costs(costs: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HungarianTokenMatching(*costs)


def test_methods_know_nothing_of_the_matching() -> None:
    method: Method = MoKD()
    Distiller(vidt(16), vidt(9), method, token_matching="hungarian")
    assert method.heads["neck"].n == 128
