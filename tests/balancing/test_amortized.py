from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mokd_det.balancing import Amortized, AmortizedValues, StepContext
from mokd_det.balancing.vector_adam import VectorAdam
from mokd_det.errors import ConfigError
from tests.balancing.toy import OBJECTIVES, ToyForward, ToyStudent, ToyTraining, context_of, joined, toy_batch


class ScriptedForward:
    """Losses of a stored trajectory; ∂L_i/∂θ_i = 1, so that θ's gradient is the raw weight of each loss."""

    def __init__(self, parameter: nn.Parameter, before: Sequence[float], after: Sequence[float]) -> None:
        self.parameter = parameter
        self.before = torch.tensor(before, dtype=torch.float64)
        self.after = torch.tensor(after, dtype=torch.float64)

    def __call__(self, *, sync: bool = True) -> Tensor:
        if not torch.is_grad_enabled():
            return self.after
        return self.before + self.parameter - self.parameter.detach()


def scripted_step(
    balancer: Amortized, before: Sequence[float], after: Sequence[float], iteration: int = 0
) -> tuple[np.ndarray, dict[str, float]]:
    """Raw weights and scalars of one step."""
    parameter = nn.Parameter(torch.zeros(len(before), dtype=torch.float64))
    forwards, context = (
        [ScriptedForward(parameter, before, after)],
        StepContext([parameter], iteration=iteration),
    )
    scalars = dict(balancer.backward(forwards, context))
    scalars.update(balancer.after_step(forwards, context))
    return parameter.grad.numpy(), {name: float(value) for name, value in scalars.items()}


@pytest.mark.parametrize(
    ("case", "optimizer"),
    [
        ("k2", "adam"),
        ("k2", "adamw"),
        ("k3", "adam"),
        ("k3", "adamw"),
        ("k2_zero_losses", "adam"),
        ("k2_min_losses", "adam"),
    ],
)
def test_trajectories(goldens: dict[str, Any], case: str, optimizer: str) -> None:
    stored = goldens["famo"][case]
    rows = {"adam": "official_adam", "adamw": "decoupled_adamw"}[optimizer]
    names = [f"objective_{index}" for index in range(len(stored["losses_before"][0]))]
    balancer = Amortized(optimizer, min_losses=stored.get("min_losses", 0.0))
    balancer.setup(names)
    assert len(stored[rows]) == 20
    for step, (before, after, row) in enumerate(
        zip(stored["losses_before"], stored["losses_after"], stored[rows], strict=True)
    ):
        np.testing.assert_allclose(balancer._optimizer.value, row["w"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(balancer.pi, row["pi"], rtol=0, atol=1e-12)
        raw, scalars = scripted_step(balancer, before, after, step)
        np.testing.assert_allclose(raw, row["raw_loss_coeff"], rtol=0, atol=1e-12)
        assert raw.sum() == pytest.approx(1, abs=1e-12)
        assert scalars["balanced_loss"] == pytest.approx(row["weighted_loss"], rel=1e-12, abs=1e-12)
        np.testing.assert_allclose(balancer._optimizer.value, row["w_next"], rtol=0, atol=1e-12)


class TestVectorAdam:
    @pytest.mark.parametrize("decoupled", [True, False])
    def test_equals_torch(self, decoupled: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(4, generator=generator, dtype=torch.float64)
        theirs = nn.Parameter(start.clone())
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        reference = kind([theirs], lr=0.03, weight_decay=0.2)
        ours = VectorAdam(start.clone(), 0.03, 0.2, decoupled)
        for _ in range(50):
            theirs.grad = torch.randn(4, generator=generator, dtype=torch.float64)
            reference.step()
            ours.step(theirs.grad)
            torch.testing.assert_close(ours.value, theirs.detach(), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_refuses_what_is_not_finite(self, bad: float) -> None:
        optimizer = VectorAdam(torch.ones(2, dtype=torch.float64), 0.1, 0.1)
        optimizer.step(torch.tensor([0.5, -1.0], dtype=torch.float64))
        before = optimizer.state_dict()
        optimizer.step(torch.tensor([1.0, bad], dtype=torch.float64))
        for name, value in optimizer.state_dict().items():
            assert torch.equal(value, before[name])


class TestUpdate:
    def test_more_improvement_means_less_weight(self) -> None:
        balancer = Amortized()
        balancer.setup(["fast", "slow"])
        _, scalars = scripted_step(balancer, [2.0, 3.0], [1.0, 2.9])
        assert scalars["log_gain/fast"] > scalars["log_gain/slow"] > 0
        assert balancer.pi[0] < 0.5 < balancer.pi[1]

    def test_scale_of_a_loss_does_not_matter(self) -> None:
        """log(c L) has the gradient of log L: the coefficient of a whole objective is without effect."""
        plain, scaled = Amortized(eps=1e-30), Amortized(eps=1e-30)
        for balancer in (plain, scaled):
            balancer.setup(["a", "b"])
        for step in range(10):
            before, after = np.array([2.0 - 0.1 * step, 5.0]), np.array([1.9 - 0.1 * step, 5.0 - 0.01 * step])
            raw, _ = scripted_step(plain, before, after)
            raw_scaled, _ = scripted_step(scaled, before * [100, 1], after * [100, 1])
            effect = raw_scaled * [100, 1]
            np.testing.assert_allclose(effect / effect.sum(), raw / raw.sum(), rtol=1e-9)
        torch.testing.assert_close(plain.pi, scaled.pi, rtol=0, atol=1e-12)

    def test_adamw_reaches_the_min_norm_weights_where_coupled_decay_stays_put(self) -> None:
        """Gains of 3e-4 and 1e-4 per unit of weight, the fair π is (1/4, 3/4)."""
        reached = {}
        for optimizer in ("adam", "adamw"):
            balancer = Amortized(optimizer)
            balancer.setup(["a", "b"])
            for step in range(600):
                gains = balancer.pi.numpy() * [3e-4, 1e-4]
                scripted_step(balancer, [1.0, 1.0], np.exp(-gains), step)
            reached[optimizer] = float(balancer.pi[0])
        assert reached["adamw"] == pytest.approx(0.25, abs=0.03)
        assert reached["adam"] == pytest.approx(0.5, abs=0.01)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_losses_that_are_not_finite_leave_pi_alone(self, bad: float) -> None:
        balancer = Amortized()
        balancer.setup(["a", "b"])
        scripted_step(balancer, [2.0, 3.0], [1.5, 2.9])
        state = balancer.state_dict()["logits"]
        scripted_step(balancer, [2.0, 3.0], [bad, 2.9])
        scripted_step(balancer, [bad, 3.0], [1.0, 2.9])
        for name, value in balancer.state_dict()["logits"].items():
            assert torch.equal(value, state[name])

    def test_zero_loss_keeps_everything_finite(self) -> None:
        balancer = Amortized()
        balancer.setup(["solved", "open"])
        raw, scalars = scripted_step(balancer, [0.0, 3.0], [0.0, 2.9])
        assert np.isfinite(raw).all() and np.isfinite(list(scalars.values())).all()
        assert balancer.pi.isfinite().all()

    def test_least_weight(self) -> None:
        balancer = Amortized(pi_min=0.1, lr=5.0, weight_decay=0.0)
        balancer.setup(["a", "b", "c"])
        for step in range(20):
            scripted_step(balancer, [1.0, 1.0, 1.0], [0.5, 1.0, 1.0], step)
        assert balancer.pi.min() == pytest.approx(0.1, abs=1e-6)
        assert balancer.pi.sum() == pytest.approx(1, abs=1e-12)

    def test_total_scales_the_raw_weights(self) -> None:
        balancer = Amortized(total=2.0)
        balancer.setup(["a", "b"])
        raw, _ = scripted_step(balancer, [2.0, 3.0], [1.0, 2.0])
        assert raw.sum() == pytest.approx(2, abs=1e-12)

    def test_update_every_saves_the_second_forward(self) -> None:
        training = ToyTraining(Amortized(update_every=3), ToyStudent())
        extra, weights = [], []
        for step in range(6):
            forward = ToyForward(training.student, toy_batch(step))
            context = context_of(training.student, step)
            training.optimizer.zero_grad()
            training.balancer.backward([forward], context)
            training.optimizer.step()
            training.balancer.after_step([forward], context)
            extra.append(len(forward.calls) - 1)
            weights.append(training.balancer.pi.clone())
        assert extra == [0, 0, 1, 0, 0, 1]
        assert torch.equal(weights[1], torch.full((3,), 1 / 3, dtype=torch.float64))
        assert not torch.equal(weights[2], weights[1]) and torch.equal(weights[4], weights[2])


class TestAccumulation:
    def test_forwards_that_are_needed(self) -> None:
        """True: with graph. Exact: mean first, backward, all after the step; micro: the last after it."""
        calls = {}
        for accumulation in ("exact", "micro"):
            balancer = Amortized(accumulation=accumulation)
            student = ToyStudent()
            balancer.setup(OBJECTIVES)
            forwards = [ToyForward(student, toy_batch(seed)) for seed in range(3)]
            balancer.backward(forwards, context_of(student))
            balancer.after_step(forwards, context_of(student))
            calls[accumulation] = [forward.calls for forward in forwards]
        assert calls["exact"] == [[False, True, False]] * 3
        assert calls["micro"] == [[True], [True], [True, False]]

    def test_micro_weighs_each_micro_batch_by_its_own_losses(self) -> None:
        student = ToyStudent()
        batches = [toy_batch(0), toy_batch(1)]
        expected = []
        for batch in batches:
            losses = student(batch)
            weights = (1 / (losses.detach() + 1e-8)) / (1 / (losses.detach() + 1e-8)).sum()
            expected.append(torch.autograd.grad((weights * losses).sum(), student.backbone.parameters()))
        balancer = Amortized(accumulation="micro")
        balancer.setup(OBJECTIVES)
        balancer.backward([ToyForward(student, batch) for batch in batches], context_of(student))
        for parameter, first, second in zip(student.backbone.parameters(), *expected, strict=True):
            torch.testing.assert_close(parameter.grad, (first + second) / 2, rtol=1e-10, atol=1e-12)

    def test_micro_equals_exact_for_equal_micro_batches(self) -> None:
        results = []
        for accumulation in ("exact", "micro"):
            training = ToyTraining(Amortized(accumulation=accumulation), ToyStudent())
            for step in range(5):
                training.step([toy_batch(step), toy_batch(step)])
            results.append(training.parameters())
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


class TestValues:
    def test_gradient_and_rest_point_of_the_printed_equation(self) -> None:
        balancer = AmortizedValues()
        balancer.setup(["distill", "task"])
        gradient, _ = balancer._logit_gradient(torch.tensor([0.5, 20.0], dtype=torch.float64), [])
        np.testing.assert_allclose(gradient, [-0.7980, 3.4489], atol=1e-4)
        balancer = AmortizedValues(weight_decay=0.0)
        balancer.setup(["distill", "task"])
        for step in range(2000):
            scripted_step(balancer, [0.5, 20.0], [0.5, 20.0], step)
        assert balancer.pi[0] == pytest.approx(0.8121, abs=1e-3)

    def test_depends_on_the_unit_of_a_loss(self) -> None:
        """Ten times the first loss turns its pull round; the objective that is meant would not notice."""
        balancer = AmortizedValues()
        balancer.setup(["distill", "task"])
        plain, _ = balancer._logit_gradient(torch.tensor([0.5, 20.0], dtype=torch.float64), [])
        scaled, _ = balancer._logit_gradient(torch.tensor([5.0, 20.0], dtype=torch.float64), [])
        assert plain[0] < 0 < scaled[0]

    def test_needs_no_second_forward(self) -> None:
        student, balancer = ToyStudent(), AmortizedValues()
        balancer.setup(OBJECTIVES)
        forward = ToyForward(student, toy_batch(0))
        balancer.backward([forward], context_of(student))
        balancer.after_step([forward], context_of(student))
        assert forward.calls == [True]
        assert not torch.equal(balancer.pi, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_gradient_is_that_of_the_weighted_logarithms() -> None:
    student, balancer = ToyStudent(), Amortized()
    balancer.setup(OBJECTIVES)
    batch = joined([toy_batch(0), toy_batch(1)])
    shifted = student(batch) + 1e-8
    scale = (1 / 3 / shifted.detach()).sum()
    expected = torch.autograd.grad((shifted.log() / 3).sum() / scale, student.backbone.parameters())
    balancer.backward([ToyForward(student, batch)], context_of(student))
    for parameter, gradient in zip(student.backbone.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pi_optimizer": "sgd"}, "pi_optimizer='sgd' is not one of 'adamw', 'adam'"),
        ({"accumulation": "sum"}, "accumulation='sum' is not one of 'exact', 'micro'"),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"update_every": 0}, "update_every must be a whole number of at least 1, not 0"),
        ({"update_every": 1.5}, "update_every must be a whole number"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"total": 0.0}, "total must be positive"),
        ({"pi_min": 0.5}, r"pi_min must lie in \[0, 1/3\)"),
        ({"pi_min": -0.1}, "pi_min must lie in"),
        ({"min_losses": [0.1]}, r"min_losses has 1 numbers for 3 objectives"),
        ({"min_losses": {"task": 0.1}}, r"min_losses names \['task'\], but the objectives are"),
        ({"min_losses": [0.1, "a", 0.0]}, "min_losses must hold finite numbers, found 'a'"),
        ({"min_losses": float("nan")}, "min_losses must hold finite numbers"),
    ],
)
def test_bad_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Amortized(**arguments).setup(OBJECTIVES)


def test_after_step_without_backward_is_a_bug() -> None:
    balancer = Amortized()
    balancer.setup(OBJECTIVES)
    with pytest.raises(RuntimeError, match="follows a backward"):
        balancer.after_step([], StepContext([]))
