"""What must hold for every balancer alike."""

from __future__ import annotations

import io
import logging

import pytest
import torch

from mokd_det.balancing import Balancer, StepContext
from tests.balancing.toy import (
    BALANCERS,
    OBJECTIVES,
    ToyForward,
    ToyStudent,
    ToyTraining,
    context_of,
    joined,
    toy_batch,
)

every_balancer = pytest.mark.parametrize("name", BALANCERS)


def saved_and_loaded(state: object) -> object:
    """Through a file that may hold no code."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first.nan_to_num(123.0), second.nan_to_num(123.0))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second


@every_balancer
def test_learns(name: str) -> None:
    training = ToyTraining(BALANCERS[name](), ToyStudent())
    before = training.student(toy_batch(0)).detach()
    for _ in range(60):
        scalars = training.step([toy_batch(0)])
    after = training.student(toy_batch(0)).detach()
    assert (after < before).sum() >= 2 and (after / before).log().sum() < -0.1
    assert all(torch.tensor(list(scalars.values())).isfinite())


@every_balancer
def test_accumulation_equals_one_big_batch(name: str) -> None:
    whole, parts = (ToyTraining(BALANCERS[name](), ToyStudent()) for _ in range(2))
    for step in range(6):
        batches = [toy_batch(10 * step + index) for index in range(3)]
        together = whole.step([joined(batches)])
        apart = parts.step(batches)
        assert together == pytest.approx(apart, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(parts.parameters(), whole.parameters(), rtol=0, atol=1e-9)
    assert same_up_to_rounding(parts.balancer, whole.balancer)


def same_up_to_rounding(first: Balancer, second: Balancer) -> bool:
    def tensors(state: object) -> list[torch.Tensor]:
        if isinstance(state, torch.Tensor):
            return [state.double().flatten()]
        return (
            [tensor for value in state.values() for tensor in tensors(value)]
            if isinstance(state, dict)
            else []
        )

    pairs = list(zip(tensors(first.state_dict()), tensors(second.state_dict()), strict=True))
    return all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in pairs)


@every_balancer
def test_loss_scale_scales_the_gradient_and_nothing_else(name: str) -> None:
    gradients, reported = [], []
    for scale in (1.0, torch.tensor(4096.0)):
        balancer, student = BALANCERS[name](), ToyStudent()
        balancer.setup(OBJECTIVES)
        scalars = balancer.backward(
            [ToyForward(student, toy_batch(0))], context_of(student, loss_scale=scale)
        )
        gradients.append([p.grad / scale for p in student.parameters() if p.grad is not None])
        reported.append({key: float(value) for key, value in scalars.items()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
    assert reported[1] == pytest.approx(reported[0], rel=1e-9, abs=1e-12)


@every_balancer
def test_adds_to_gradients_that_are_there(name: str) -> None:
    gradients = []
    for earlier in (0.0, 2.0):
        balancer, student = BALANCERS[name](), ToyStudent()
        balancer.setup(OBJECTIVES)
        for parameter in student.parameters():
            parameter.grad = torch.full_like(parameter, earlier)
        balancer.backward([ToyForward(student, toy_batch(0))], context_of(student))
        gradients.append([parameter.grad - earlier for parameter in student.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)


@every_balancer
def test_resume_is_bit_equal(name: str) -> None:
    straight = ToyTraining(BALANCERS[name](), ToyStudent())
    for step in range(9):
        straight.step([toy_batch(step)])

    first = ToyTraining(BALANCERS[name](), ToyStudent())
    for step in range(5):
        first.step([toy_batch(step)])
    state = saved_and_loaded(
        {
            "model": first.student.state_dict(),
            "optimizer": first.optimizer.state_dict(),
            "balancer": first.balancer.state_dict(),
        }
    )
    torch.manual_seed(12345)
    second = ToyTraining(BALANCERS[name](), ToyStudent(seed=7))
    second.student.load_state_dict(state["model"])
    second.optimizer.load_state_dict(state["optimizer"])
    second.balancer.load_state_dict(state["balancer"])
    second.iteration = 5
    for step in range(5, 9):
        second.step([toy_batch(step)])
    assert torch.equal(second.parameters(), straight.parameters())
    assert same(second.balancer.state_dict(), straight.balancer.state_dict())


@every_balancer
def test_a_step_that_was_not_taken_leaves_no_mark(name: str) -> None:
    training = ToyTraining(BALANCERS[name](), ToyStudent())
    for step in range(3):
        training.step([toy_batch(step)])
    before = training.balancer.state_dict()
    training.balancer.backward([ToyForward(training.student, toy_batch(9))], context_of(training.student, 3))
    assert same(training.balancer.state_dict(), before)


@every_balancer
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_losses_do_not_corrupt_the_state(name: str, bad: float) -> None:
    training = ToyTraining(BALANCERS[name](), ToyStudent())
    for step in range(2):
        training.step([toy_batch(step)])
    before = training.balancer.state_dict()
    forward = ToyForward(training.student, toy_batch(9))
    context = context_of(training.student, 2)

    def broken(*, sync: bool = True) -> torch.Tensor:
        return forward(sync=sync) * torch.tensor([1.0, bad, 1.0], dtype=torch.float64)

    training.balancer.backward([broken], context)
    training.balancer.after_step([broken], context)
    for key, value in training.balancer.state_dict().items():
        assert same(value, before[key]), key


@every_balancer
def test_single_precision_student(name: str) -> None:
    training = ToyTraining(BALANCERS[name](), ToyStudent(dtype=torch.float32))
    reference = ToyTraining(BALANCERS[name](), ToyStudent())
    for step in range(3):
        training.step([toy_batch(step, dtype=torch.float32)])
        reference.step([toy_batch(step)])
    torch.testing.assert_close(training.parameters().double(), reference.parameters(), rtol=0, atol=1e-4)


@every_balancer
def test_reports_scalars_without_graph(name: str) -> None:
    balancer, student = BALANCERS[name](), ToyStudent()
    balancer.setup(OBJECTIVES)
    forwards, context = [ToyForward(student, toy_batch(0))], context_of(student)
    scalars = {**balancer.backward(forwards, context), **balancer.after_step(forwards, context)}
    for key, value in scalars.items():
        assert isinstance(value, float) or (value.numel() == 1 and not value.requires_grad), key


@every_balancer
def test_state_of_other_objectives_is_refused_aloud(name: str, caplog: pytest.LogCaptureFixture) -> None:
    trained, fresh = ToyTraining(BALANCERS[name](), ToyStudent()), BALANCERS[name]()
    trained.step([toy_batch(0)])
    if not trained.balancer.state_dict():
        with pytest.raises(ValueError, match="has no state"):
            fresh.load_state_dict({"weights": torch.ones(2)})
        return
    fresh.setup(OBJECTIVES[::-1])
    untouched = fresh.state_dict()
    with caplog.at_level(logging.WARNING):
        fresh.load_state_dict(trained.balancer.state_dict())
    assert "they start anew" in caplog.text
    assert same(fresh.state_dict(), untouched)


@every_balancer
def test_autocast_with_gradscaler(name: str) -> None:
    """fp16 overflows at the first scales: those steps are skipped, π stays, and training goes on."""
    student = ToyStudent(dtype=torch.float32)
    balancer = BALANCERS[name]()
    balancer.setup(OBJECTIVES)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    batch = toy_batch(0, dtype=torch.float32)

    def forward(*, sync: bool = True) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            images, labels, features = batch
            return student((images * 4, labels, features)).float()

    taken = 0
    for iteration in range(16):
        optimizer.zero_grad()
        before, parameters = balancer.state_dict(), [p.detach().clone() for p in student.parameters()]
        scale = scaler.scale(torch.ones(()))
        context = StepContext(
            student.shared_parameters(),
            student.private_parameters(),
            scale,
            iteration,
            lambda: [student.tapped],
        )
        balancer.backward([forward], context)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < float(scale):
            assert same(balancer.state_dict(), before)
            assert all(torch.equal(a, b) for a, b in zip(student.parameters(), parameters, strict=True))
        else:
            balancer.after_step([forward], context)
            taken += 1
    assert 0 < taken < 16, "both kinds of steps must occur"
    assert all(parameter.isfinite().all() for parameter in student.parameters())
