"""Uncertainty weighting, GradNorm and fixed weights: what each of them promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mokd_det.balancing import Balancer, FixedWeights, GradNorm, StepContext, UncertaintyWeighting
from mokd_det.errors import ConfigError
from tests.balancing.toy import OBJECTIVES, ToyForward, ToyStudent, context_of, joined, toy_batch


def constant_step(
    balancer: Balancer, values: list[float], gradients: list[list[float]], iteration: int = 0
) -> Tensor:
    """∂/∂θ that a step leaves, for losses with given values and gradients."""
    parameter = nn.Parameter(torch.zeros(len(gradients[0]), dtype=torch.float64))
    constants, slopes = (torch.tensor(given, dtype=torch.float64) for given in (values, gradients))
    forwards = [lambda *, sync=True: constants + slopes @ parameter]
    context = StepContext([parameter], iteration=iteration)
    balancer.backward(forwards, context)
    balancer.after_step(forwards, context)
    return parameter.grad


class TestFixed:
    @pytest.mark.parametrize("weights", [{"task": 1.0, "distill": 4.0, "boxes": 0.5}, [4.0, 1.0, 0.5]])
    def test_is_the_weighted_sum(self, weights: object) -> None:
        student, balancer = ToyStudent(), FixedWeights(weights)
        balancer.setup(OBJECTIVES)
        batch = joined([toy_batch(0), toy_batch(1)])
        expected = torch.autograd.grad(
            (student(batch) * torch.tensor([4.0, 1.0, 0.5])).sum(), student.backbone.parameters()
        )
        balancer.backward([ToyForward(student, batch)], context_of(student))
        for parameter, gradient in zip(student.backbone.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)

    def test_default_is_the_plain_sum(self) -> None:
        balancer = FixedWeights()
        balancer.setup(["a", "b"])
        assert constant_step(balancer, [1.0, -1.0], [[1.0, 0.0], [0.0, 2.0]]).tolist() == [1.0, 2.0]
        assert not balancer.requires_positive and balancer.state_dict() == {}

    def test_wrong_names(self) -> None:
        with pytest.raises(ConfigError, match=r"weights names \['cls'\], but the objectives are"):
            FixedWeights({"cls": 1.0}).setup(OBJECTIVES)


class TestUncertainty:
    def test_approaches_the_sum_of_logarithms(self) -> None:
        """At rest s_i = log L_i: the weights are 1 / (2 L_i)."""
        balancer = UncertaintyWeighting(lr=0.05)
        balancer.setup(["a", "b"])
        for step in range(600):
            gradient = constant_step(balancer, [0.5, 20.0], [[1.0, 0.0], [0.0, 1.0]], step)
        np.testing.assert_allclose(gradient, [1.0, 0.025], rtol=1e-2)

    def test_first_step_halves(self) -> None:
        balancer = UncertaintyWeighting()
        balancer.setup(["a", "b"])
        assert constant_step(balancer, [0.5, 20.0], [[1.0, 0.0], [0.0, 1.0]]).tolist() == [0.5, 0.5]

    def test_update_every(self) -> None:
        balancer = UncertaintyWeighting(update_every=2)
        balancer.setup(["a"])
        moved = []
        for step in range(4):
            before = balancer.state_dict()["log_variances"]["value"]
            constant_step(balancer, [3.0], [[1.0]], step)
            moved.append(not torch.equal(before, balancer.state_dict()["log_variances"]["value"]))
        assert moved == [False, True, False, True]


class TestGradNorm:
    def test_equalises_the_norms(self) -> None:
        balancer = GradNorm(alpha=0.0, lr=0.01)
        balancer.setup(["a", "b"])
        for step in range(600):
            constant_step(balancer, [1.0, 1.0], [[3.0, 0.0], [0.0, 1.0]], step)
        gradient = constant_step(balancer, [1.0, 1.0], [[3.0, 0.0], [0.0, 1.0]], 600)
        assert gradient[0] == pytest.approx(float(gradient[1]), rel=0.05)
        assert gradient[0] / 3 + gradient[1] == pytest.approx(2, abs=1e-9)

    def test_an_objective_that_lags_behind_gets_more(self) -> None:
        balancer = GradNorm(lr=0.05)
        balancer.setup(["fast", "slow"])
        for step in range(40):
            constant_step(balancer, [0.9**step, 1.0], [[1.0, 0.0], [0.0, 1.0]], step)
        weights = balancer.state_dict()["weights"]
        assert weights[1] > 1.2 > weights[0] > 0
        assert weights.sum() == pytest.approx(2, abs=1e-12)

    def test_weights_stay_positive(self) -> None:
        balancer = GradNorm(alpha=5.0, lr=1.0)
        balancer.setup(["fast", "slow"])
        for step in range(20):
            constant_step(balancer, [0.1**step, 1.0], [[1.0, 0.0], [0.0, 1.0]], step)
        assert balancer.state_dict()["weights"].min() > 0

    def test_update_every_takes_one_backward_in_between(self) -> None:
        balancer = GradNorm(update_every=3)
        balancer.setup(OBJECTIVES)
        student = ToyStudent()
        solved = []
        for step in range(4):
            forwards, context = [ToyForward(student, toy_batch(step))], context_of(student, step)
            solved.append("cosine/distill_task" in balancer.backward(forwards, context))
            balancer.after_step(forwards, context)
        assert solved == [True, False, False, True]


CURVES = [([1.0, 4.0], [[2.0, 0.0], [0.3, 0.4]]), ([0.5, 3.9], [[1.0, 1.0], [0.0, 0.5]])] * 4 + [
    ([0.0, 3.0], [[0.1, 0.0], [4.0, 3.0]]),
    ([0.3, 1e-9], [[0.0, 2.0], [0.0, 0.0]]),
]


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.0, "lr": 0.1}, {"alpha": 3.0, "lr": 0.5}])
def test_gradnorm_descends_its_objective(settings: dict[str, float]) -> None:
    """Against autograd and torch's Adam on Σ |w_i n_i − t_i|; without settings: α = 1.5, step size 0.025."""
    balancer = GradNorm(**settings)
    balancer.setup(["one", "other"])
    alpha, lr = settings.get("alpha", 1.5), settings.get("lr", 0.025)
    weights = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    adam = torch.optim.Adam([weights], lr=lr)
    first = torch.tensor(CURVES[0][0], dtype=torch.float64)
    for step, (losses, gradients) in enumerate(CURVES):
        constant_step(balancer, losses, gradients, step)
        norms = torch.tensor(gradients, dtype=torch.float64).norm(dim=1)
        progress = (torch.tensor(losses, dtype=torch.float64) + 1e-8) / (first + 1e-8)
        target = (weights.detach() * norms).mean() * (progress / progress.mean()) ** alpha
        adam.zero_grad()
        (weights * norms - target).abs().sum().backward()
        adam.step()
        with torch.no_grad():
            weights.clamp_(min=1e-3)
            weights.mul_(2 / weights.sum())
        torch.testing.assert_close(balancer.state_dict()["weights"], weights.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(balancer.state_dict()["first_losses"], first)


def test_gradnorm_starts_its_rates_at_the_first_finite_losses() -> None:
    balancer = GradNorm()
    balancer.setup(["one", "other"])
    gradients = [[1.0, 0.0], [0.0, 1.0]]
    for step, losses in enumerate([[float("inf"), 2.0], [3.0, float("nan")], [5.0, 6.0], [7.0, 8.0]]):
        constant_step(balancer, losses, gradients, step)
    assert balancer.state_dict()["first_losses"].tolist() == [5.0, 6.0]


@pytest.mark.parametrize("settings", [{}, {"lr": 0.2}])
def test_uncertainty_descends_its_objective(settings: dict[str, float]) -> None:
    """Against autograd and torch's Adam on ½ Σ (e^−s L + s); without settings: step size 0.01."""
    balancer = UncertaintyWeighting(**settings)
    balancer.setup(["one", "other"])
    variances = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    adam = torch.optim.Adam([variances], lr=settings.get("lr", 0.01))
    for step, (losses, gradients) in enumerate(CURVES):
        constant_step(balancer, losses, gradients, step)
        adam.zero_grad()
        values = torch.tensor(losses, dtype=torch.float64)
        (0.5 * (torch.exp(-variances) * values + variances)).sum().backward()
        adam.step()
        found = balancer.state_dict()["log_variances"]["value"]
        torch.testing.assert_close(found, variances.detach(), rtol=1e-10, atol=1e-12)


def test_uncertainty_moves_in_every_nth_step_only() -> None:
    balancer = UncertaintyWeighting(update_every=3)
    balancer.setup(["one", "other"])
    values = []
    for step in range(6):
        constant_step(balancer, [2.0, 3.0], [[1.0, 0.0], [0.0, 1.0]], step)
        values.append(balancer.state_dict()["log_variances"]["value"].tolist())
    assert values[0] == values[1] == [0.0, 0.0]
    assert values[2] == values[3] == values[4] != values[1]
    assert values[5] != values[4]
