"""MoKD's subspace head."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from mokd_det.distillation.cholesky_qr import householder_qr
from mokd_det.distillation.row_losses import cosine_distance, l1, normalize, smooth_l1
from mokd_det.distillation.stiefel import StiefelLinear, retract_
from mokd_det.distillation.subspace import SubspaceHead, common_dimension
from mokd_det.errors import ConfigError, IncompatibleModelsError


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(30, 6), torch.randn(30, 10) * 2 + 1


def test_default_dimension_is_the_sum_rounded_up_to_64() -> None:
    assert common_dimension(256, 256) == 512
    assert common_dimension(192, 3024) == 3264
    assert SubspaceHead(6, 10).n == 64
    assert SubspaceHead(6, 10, 12).n == 12


def test_regression_is_smooth_l1_of_the_two_projections(rows) -> None:
    student, teacher = rows
    head = SubspaceHead(6, 10, 20, loss="regression", bias=True)
    with torch.no_grad():
        head.metric.uniform_(-2, 2)
        head.bias.normal_()
    p_s, p_t = head.student_projection.weight, head.teacher_projection.weight
    expected = F.smooth_l1_loss(
        (student @ p_s.mT) * head.metric + head.bias, F.layer_norm(teacher, (10,)) @ p_t.mT
    )
    torch.testing.assert_close(head(student, teacher), expected)


def test_similarity_is_one_minus_the_normalised_equation_16(rows) -> None:
    student, teacher = rows
    head = SubspaceHead(6, 10, 20, loss="similarity", norm="none")
    assert head.bias is None
    with torch.no_grad():
        head.metric.uniform_(-2, 2)
    p_s, p_t, d = head.student_projection.weight, head.teacher_projection.weight, torch.diag(head.metric)
    s = torch.stack([z_t @ p_t.mT @ d @ p_s @ z_s for z_s, z_t in zip(student, teacher, strict=True)])
    lengths = (teacher @ p_t.mT).norm(dim=1) * (student @ p_s.mT @ d).norm(dim=1)
    torch.testing.assert_close(head(student, teacher), (1 - s / lengths).mean())


def test_similarity_standardised_before_the_projections(rows) -> None:
    """Loop by loop: both sides have mean 0 and variance 1 per channel before P_s and P_t; so no channel's mean, which
    all rows share, can be the similarity."""
    student, teacher = (r.double() for r in rows)
    head = SubspaceHead(6, 10, 16, norm="standardize", student_norm="before", eps=0).double()
    with torch.no_grad():
        head.metric.uniform_(-2, 2)
    p_s, p_t, d = (
        p.tolist() for p in (head.student_projection.weight, head.teacher_projection.weight, head.metric)
    )
    z_s, z_t = (((r - r.mean(0)) / r.std(0)).tolist() for r in (student, teacher))
    expected = 0.0
    for r in range(30):
        a = [d[k] * sum(p_s[k][c] * z_s[r][c] for c in range(6)) for k in range(16)]
        b = [sum(p_t[k][c] * z_t[r][c] for c in range(10)) for k in range(16)]
        dot, lengths = (
            sum(x * y for x, y in zip(a, b, strict=True)),
            (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5,
        )
        expected += (1 - dot / lengths) / 30
    assert head(student, teacher).item() == pytest.approx(expected, abs=1e-12)
    shifted = head(student + 100 * torch.randn(6).double(), teacher * 3 - 7)
    assert shifted.item() == pytest.approx(expected, abs=1e-9)


def test_the_setting_of_vkd_classification_reproduces_its_stored_loss(goldens, wave) -> None:
    stored = goldens["losses"]["vkd_classification"]
    student = wave(**stored["z_s"]).mean(1)
    teacher = wave(**stored["z_t"]).mean((2, 3))
    head = SubspaceHead(4, 7, 7, loss="regression", learn_teacher_subspace=False, metric=False).double()
    with torch.no_grad():
        head.student_projection.weight.copy_(householder_qr(wave((7, 4), 2.2)))
    assert head(student, teacher).item() == pytest.approx(stored["repr_smooth_l1"], abs=1e-10)


def test_switches_decide_what_is_learned() -> None:
    def names(**options) -> set[str]:
        return {name for name, _ in SubspaceHead(6, 6, **options).named_parameters()}

    both = {"student_projection.weight", "teacher_projection.weight"}
    assert names() == names(loss="regression") == both | {"metric"}
    assert names(bias=True) == both | {"metric", "bias"}
    assert names(metric=False) == both
    assert names(n=6, learn_teacher_subspace=False) == {"student_projection.weight", "metric"}
    assert names(subspace=False) == set()


def test_the_metric_may_start_indefinite() -> None:
    metric = SubspaceHead(6, 10, 400, metric_init="random_signs").metric
    assert set(metric.tolist()) == {-1.0, 1.0} and 150 < (metric < 0).sum() < 250
    assert set(SubspaceHead(6, 10).metric.tolist()) == {1.0}
    with pytest.raises(ConfigError, match=r"metric_init='zeros'.*'random_signs'"):
        SubspaceHead(6, 10, metric_init="zeros")  # type: ignore[arg-type]


def test_a_fixed_teacher_projection_is_the_identity_or_a_stored_random_matrix(rows) -> None:
    student, teacher = rows
    square = SubspaceHead(6, 10, 10, learn_teacher_subspace=False, norm="none")
    torch.testing.assert_close(square.project(student, teacher)[1], teacher)
    tall = SubspaceHead(6, 10, 16, learn_teacher_subspace=False)
    assert "teacher_projection.weight" in tall.state_dict()
    before = tall.teacher_projection.weight.clone()
    optimizer = torch.optim.AdamW(tall.parameters(), lr=0.1)
    tall(student, teacher).backward()
    optimizer.step()
    assert torch.equal(tall.teacher_projection.weight, before)


def test_without_a_subspace_the_rows_are_compared_as_they_are() -> None:
    student, teacher = torch.randn(2, 9, 4)
    head = SubspaceHead(4, 4, loss="regression", subspace=False, norm="none")
    torch.testing.assert_close(head(student, teacher), F.smooth_l1_loss(student, teacher))
    with pytest.raises(IncompatibleModelsError, match=r"6 channels.*10"):
        SubspaceHead(6, 10, subspace=False)


def test_standardising_after_gain_and_bias_leaves_only_the_signs_of_the_gain(rows) -> None:
    student, teacher = rows
    options = {"loss": "regression", "norm": "standardize", "student_norm": "after", "bias": True}
    head = SubspaceHead(6, 10, 12, **options, eps=0).double()
    student, teacher = student.double(), teacher.double()
    plain = head(student, teacher)
    with torch.no_grad():
        head.metric.uniform_(0.5, 3)
        head.bias.normal_()
    torch.testing.assert_close(head(student, teacher), plain)
    with torch.no_grad():
        head.metric.neg_()
    assert abs(head(student, teacher) - plain) > 1e-3


def test_the_teacher_is_normalised_before_its_projection(rows) -> None:
    student, teacher = rows
    head = SubspaceHead(6, 10, 32, norm="standardize", student_norm="before")
    projected_s, projected_t = head.project(student, teacher)
    scaled_s, scaled_t = head.project(student * 5 + 2, teacher * torch.rand(10).add(0.5) - 3)
    torch.testing.assert_close(projected_s, scaled_s, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(projected_t, scaled_t, rtol=1e-3, atol=1e-3)
    back = projected_t @ head.teacher_projection.weight
    torch.testing.assert_close(back.std(0), torch.ones(10), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["similarity", "regression", "l1", "normalized_l1"])
@pytest.mark.parametrize("student_norm", ["none", "before", "after"])
def test_rows_of_weight_zero_change_nothing(rows, loss, student_norm) -> None:
    student, teacher = (r.double() for r in rows)
    head = SubspaceHead(6, 10, 16, loss=loss, norm="standardize", student_norm=student_norm).double()
    weights = (torch.rand(30) > 0.5).double()
    keep = weights > 0
    torch.testing.assert_close(head(student, teacher, weights), head(student[keep], teacher[keep]))


@pytest.mark.parametrize("loss", ["similarity", "regression", "l1", "normalized_l1"])
def test_autocast_changes_nothing(rows, loss) -> None:
    student, teacher = rows
    student.requires_grad_()
    head = SubspaceHead(6, 10, 16, loss=loss)
    plain = head(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head(student, teacher)
        half = head(student.bfloat16(), teacher.bfloat16())
    assert mixed.dtype == half.dtype == torch.float32
    assert torch.equal(mixed, plain)
    torch.testing.assert_close(half, plain, rtol=2e-2, atol=1e-3)


def test_gradients_reach_student_projections_and_metric_but_not_the_teacher(rows) -> None:
    student, teacher = (r.clone().requires_grad_() for r in rows)
    head = SubspaceHead(6, 10, bias=True)
    head(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


def test_orthogonality_holds_after_a_thousand_adamw_steps(rows) -> None:
    student, teacher = rows
    head = SubspaceHead(6, 10, 16)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0)
    first = head(student, teacher).item()
    for _ in range(1000):
        optimizer.zero_grad()
        loss = head(student, teacher)
        loss.backward()
        optimizer.step()
        retract_(m.weight for m in head.modules() if isinstance(m, StiefelLinear))
    assert head.diagnostics()["orthogonality_error"] <= 1e-5
    assert loss.item() < 0.9 * first


def test_diagnostics() -> None:
    head = SubspaceHead(6, 10, 16, norm="none")
    assert "target_effective_rank" not in head.diagnostics()
    with torch.no_grad():
        head.metric[:5] = -1
    directions = torch.eye(10)[:3]
    teacher = torch.cat([directions, -directions, torch.randn(4, 10)])
    head(torch.randn(10, 6), teacher, torch.tensor([1.0] * 6 + [0.0] * 4))
    numbers = head.diagnostics()
    assert numbers["negative_metric"] == 5
    assert numbers["orthogonality_error"] < 1e-6
    assert numbers["target_effective_rank"] == pytest.approx(3, abs=1e-3)
    copy.deepcopy(head)


def test_bad_arguments_name_the_argument_and_what_would_be_right() -> None:
    with pytest.raises(ConfigError, match=r"n=9.*at least 10"):
        SubspaceHead(6, 10, 9)
    with pytest.raises(ConfigError, match=r"loss='cosine'.*'similarity', 'regression'"):
        SubspaceHead(6, 10, loss="cosine")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"norm='batch'.*'layer_norm'"):
        SubspaceHead(6, 10, norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"student_norm='both'.*'after'"):
        SubspaceHead(6, 10, student_norm="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "standardize", "student_norm": "before"},
        {"loss": "regression", "bias": True},
        {"loss": "regression", "metric": False},
        {"loss": "regression", "learn_teacher_subspace": False, "n": 10},
        {"loss": "regression", "learn_teacher_subspace": False},
        {"loss": "regression", "norm": "standardize", "student_norm": "before"},
        {"loss": "regression", "norm": "standardize", "student_norm": "after", "bias": True},
        {"loss": "l1"},
        {"loss": "normalized_l1"},
    ],
    ids=str,
)
def test_the_loss_is_that_of_the_projected_rows_step_by_step(rows, options, weighted) -> None:
    student, teacher = (r.double() for r in rows)
    weights = (torch.arange(30) % 3 > 0).double() if weighted else None
    head = SubspaceHead(6, 10, **{"n": 20, **options}).double()
    with torch.no_grad():
        for parameter in (head.metric, head.bias):
            if parameter is not None:
                parameter.uniform_(-2, 2)
    student.requires_grad_()
    norm = "before" if options.get("student_norm") == "before" else "none"
    z = normalize(student, "standardize", weights, head.eps) if norm == "before" else student
    z = z @ head.student_projection.weight.mT
    z = z if head.metric is None else z * head.metric
    z = z if head.bias is None else z + head.bias
    if options.get("student_norm") == "after":
        z = normalize(z, "standardize", weights, head.eps)
    target = normalize(teacher, head.norm, weights, head.eps)
    if isinstance(head.teacher_projection, StiefelLinear):
        target = target @ head.teacher_projection.weight.mT
    torch.testing.assert_close(head.project(student, teacher, weights), (z, target))
    if head.loss == "normalized_l1":
        z, target = (r / (r.square().mean(1, keepdim=True) + head.eps).sqrt() for r in (z, target))
    row_loss = {"similarity": cosine_distance, "regression": smooth_l1}.get(head.loss, l1)
    expected = row_loss(z, target, weights)
    loss = head(student, teacher, weights)
    torch.testing.assert_close(loss, expected)
    inputs = [student, *head.parameters()]
    for found, wanted in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(found, wanted)
