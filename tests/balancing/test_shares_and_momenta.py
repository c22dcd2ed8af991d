"""GradientShare and DOT against their formulas, and the switches of the exact and the amortised mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mokd_det.balancing import DOT, Amortized, ClosedForm, GradientShare, StepContext, min_norm_weights
from mokd_det.errors import ConfigError
from tests.balancing.toy import OBJECTIVES, ToyForward, ToyStudent, ToyTraining, context_of, toy_batch


class Linear:
    """Two objectives with constant gradients of given lengths, orthogonal, over one parameter; a private head each."""

    def __init__(self, distill: float, task: float) -> None:
        self.parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.slopes = torch.tensor([[distill, 0.0], [0.0, task]], dtype=torch.float64)

    def __call__(self, *, sync: bool = True) -> Tensor:
        return self.slopes @ self.parameter + 100

    def steps(self, balancer: GradientShare, start: int, count: int) -> dict[str, Tensor | float]:
        for iteration in range(start, start + count):
            context = StepContext([self.parameter], iteration=iteration)
            self.parameter.grad = None
            scalars = dict(balancer.backward([self], context))
            scalars.update(balancer.after_step([self], context))
        return scalars


def weight(balancer: GradientShare) -> float:
    return float(balancer.state_dict()["weights"][0])


@pytest.mark.parametrize(("norm", "edge"), [(0.05, 0.10), (0.5, 0.12)])
def test_the_share_is_at_the_nearer_edge_after_one_period(norm: float, edge: float) -> None:
    balancer, model = GradientShare(period=5), Linear(norm, 1.0)
    balancer.setup(["distill", "task"])
    scalars = model.steps(balancer, 0, 5)
    assert float(scalars["gradient_share/distill"]) == pytest.approx(norm / (norm + 1))
    scalars = model.steps(balancer, 5, 1)
    assert float(scalars["gradient_share/distill"]) == pytest.approx(edge)
    assert weight(balancer) * norm / (weight(balancer) * norm + 1) == pytest.approx(edge)
    assert model.parameter.grad.tolist() == pytest.approx([weight(balancer) * norm, 1.0])


def test_inside_the_band_the_weight_stays_to_the_bit() -> None:
    balancer, model = GradientShare(period=2, weight=0.123), Linear(1.0, 1.0)
    balancer.setup(["distill", "task"])
    model.steps(balancer, 0, 6)
    assert 0.10 < 0.123 / 1.123 < 0.12
    assert weight(balancer) == 0.123


@pytest.mark.parametrize(("norm", "factor"), [(1e-4, 10.0), (1e4, 0.1), (0.0, 10.0)])
def test_a_period_changes_the_weight_tenfold_at_most(norm: float, factor: float) -> None:
    balancer, model = GradientShare(period=1), Linear(norm, 1.0)
    balancer.setup(["distill", "task"])
    model.steps(balancer, 0, 1)
    assert weight(balancer) == pytest.approx(factor)


def test_shares_that_cannot_be_are_refused() -> None:
    for arguments, message in (
        ({"share": 0.005}, r"share ± balancer.tolerance must lie between 0 and 1"),
        ({"period": 2, "update_every": 3}, "at least update_every=3"),
        ({"weight": 0.0}, "weight must be positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            GradientShare(**{"period": 10, **arguments})
    for make in (lambda: GradientShare(1, objective="kd"), lambda: DOT(objective="kd")):
        with pytest.raises(
            ConfigError, match=r"objective='kd' must be one of two or more.*'distill', 'task'"
        ):
            make().setup(["distill", "task"])


def test_two_momenta_are_those_of_the_published_optimiser() -> None:
    """Written out, with two velocities per parameter; where only one side reaches, the plain momentum."""
    mu, delta, lr = 0.9, 0.075, 0.05
    training = ToyTraining(DOT(delta, mu), ToyStudent())
    training.balancer.check_optimizer(training.optimizer)
    reference = ToyStudent()
    reach = {"distill": ("backbone", "projection"), "rest": ("backbone", "head", "box")}
    velocities: dict[tuple[str, str], Tensor] = {}
    for step in range(12):
        training.step([toy_batch(step)])
        distill, *others = reference(toy_batch(step)).unbind()
        named = dict(reference.named_parameters())
        sides = {
            side: dict(
                zip(
                    named,
                    torch.autograd.grad(
                        loss, list(named.values()), retain_graph=True, materialize_grads=True
                    ),
                    strict=True,
                )
            )
            for side, loss in (("distill", distill), ("rest", sum(others)))
        }
        with torch.no_grad():
            for name, parameter in named.items():
                both = name.startswith("backbone")
                for side, sign in (("distill", 1), ("rest", -1)):
                    if name.startswith(reach[side]):
                        momentum = mu + sign * delta * both
                        old = velocities.get((side, name), torch.zeros_like(parameter))
                        velocities[side, name] = momentum * old + sides[side][name]
                        parameter -= lr * velocities[side, name]
    expected = nn.utils.parameters_to_vector(reference.parameters()).detach()
    torch.testing.assert_close(training.parameters(), expected, rtol=0, atol=1e-12)
    plain = ToyTraining(DOT(0.0, mu), ToyStudent())
    for step in range(12):
        plain.step([toy_batch(step)])
    assert (plain.parameters() - expected).abs().max() > 1e-3


def test_two_momenta_need_sgd_with_the_same_one() -> None:
    parameters = [nn.Parameter(torch.zeros(2))]
    DOT().check_optimizer(torch.optim.SGD(parameters, lr=1.0, momentum=0.9))
    for optimizer, message in (
        (torch.optim.AdamW(parameters), "torch.optim.SGD only, not AdamW"),
        (torch.optim.SGD(parameters, lr=1.0), "needs optimizer.momentum=0.9"),
        (torch.optim.SGD(parameters, lr=1.0, momentum=0.9, nesterov=True), "without nesterov"),
    ):
        with pytest.raises(ConfigError, match=message):
            DOT().check_optimizer(optimizer)
    with pytest.raises(ConfigError, match=r"momentum ± balancer.delta must lie in \[0, 1\)"):
        DOT(delta=0.2)


def rows_of(student: ToyStudent, batch: tuple) -> dict[str, list[Tensor | None]]:
    losses = student(batch)
    named = dict(student.named_parameters())
    return dict(
        zip(
            OBJECTIVES,
            (
                list(
                    torch.autograd.grad(loss, list(named.values()), retain_graph=True, materialize_grads=True)
                )
                for loss in losses.unbind()
            ),
            strict=True,
        )
    )


def test_the_gram_matrix_of_the_trunk_leaves_out_what_one_objective_reaches() -> None:
    student = ToyStudent()
    rows = list(rows_of(student, toy_batch(0)).values())
    trunk = [i for i in range(len(rows[0])) if all(row[i].count_nonzero() for row in rows)]
    assert len(trunk) == 4, "the backbone's two layers"
    losses = student(toy_batch(0)).detach()
    flat = [
        torch.cat([row[i].flatten() for i in trunk]) / (loss + 1e-8)
        for row, loss in zip(rows, losses, strict=True)
    ]
    expected = min_norm_weights(torch.stack(flat) @ torch.stack(flat).T)
    balancer = ClosedForm(trunk_only=True)
    balancer.setup(OBJECTIVES)
    scalars = balancer.backward([ToyForward(student, toy_batch(0))], context_of(student))
    assert [float(scalars[f"pi/{name}"]) for name in OBJECTIVES] == pytest.approx(expected.tolist())
    whole = ClosedForm()
    whole.setup(OBJECTIVES)
    scalars = whole.backward([ToyForward(student, toy_batch(0))], context_of(student))
    assert [float(scalars[f"pi/{name}"]) for name in OBJECTIVES] != pytest.approx(expected.tolist(), abs=1e-3)


def test_with_a_lag_a_step_applies_the_solution_of_the_one_before() -> None:
    lagging = ToyTraining(ClosedForm(lag=True), ToyStudent())
    solution = [1 / 3] * 3
    for step in range(4):
        exact = ClosedForm()
        exact.setup(OBJECTIVES)
        student = ToyStudent()
        student.load_state_dict(lagging.student.state_dict())
        found = exact.backward([ToyForward(student, toy_batch(step))], context_of(student))
        scalars = lagging.step([toy_batch(step)])
        assert [scalars[f"pi/{name}"] for name in OBJECTIVES] == pytest.approx(solution)
        solution = [float(found[f"pi/{name}"]) for name in OBJECTIVES]


def test_the_bare_gradient_of_the_amortised_mode() -> None:
    student = ToyStudent()
    losses, rows = student(toy_batch(0)).detach(), list(rows_of(student, toy_batch(0)).values())
    balancer = Amortized(total=None)
    balancer.setup(OBJECTIVES)
    scalars = balancer.backward([ToyForward(student, toy_batch(0))], context_of(student))
    for index, parameter in enumerate(student.parameters()):
        parts = [row[index] / (3 * loss) for row, loss in zip(rows, losses, strict=True)]
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, sum(parts), rtol=1e-7, atol=1e-12)
    assert float(scalars["balanced_loss"]) == pytest.approx(float((losses + 1e-8).log().mean()))


@pytest.mark.parametrize("improvement", ["log", "relative"])
def test_relative_improvement_is_that_of_equation_6(improvement: str) -> None:
    balancer = Amortized(improvement=improvement, eps=1e-12)  # type: ignore[arg-type]
    balancer.setup(["a", "b"])
    parameter = nn.Parameter(torch.ones((), dtype=torch.float64))
    before, after = (
        torch.tensor([2.0, 4.0], dtype=torch.float64),
        torch.tensor([1.0, 3.0], dtype=torch.float64),
    )
    context = StepContext([parameter])
    balancer.backward([lambda *, sync=True: before * parameter], context)
    scalars = balancer.after_step([lambda *, sync=True: after], context)
    expected = [0.5, 0.25] if improvement == "relative" else [0.6931471805599453, 0.28768207245178085]
    assert [float(scalars[f"{improvement}_gain/{name}"]) for name in "ab"] == pytest.approx(expected)
    logits = balancer.state_dict()["logits"]
    gradient = [0.5 * (gain - sum(expected) / 2) for gain in expected]
    assert (logits["first_moment"] / 0.1).tolist() == pytest.approx(gradient)
