"""The controls: a run's mean weights, its weights replayed, a direction at the plain sum's length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mokd_det.balancing import Amortized, ClosedForm, FixedWeights, MeanOf, Replay, SumNorm
from mokd_det.errors import ConfigError
from tests.balancing.toy import (
    OBJECTIVES,
    RECORDED_RUN,
    ToyForward,
    ToyStudent,
    ToyTraining,
    context_of,
    toy_batch,
)


def test_the_mean_is_a_fixed_weight() -> None:
    rows = [json.loads(line) for line in (RECORDED_RUN / "metrics.json").read_text().splitlines()]
    mean = {name: sum(row[f"raw_weight/{name}"] for row in rows) / len(rows) for name in OBJECTIVES}
    held, fixed = (ToyTraining(b, ToyStudent()) for b in (MeanOf(RECORDED_RUN), FixedWeights(mean)))
    for step in range(5):
        scalars = held.step([toy_batch(step)])
        fixed.step([toy_batch(step)])
        assert {name: scalars[f"raw_weight/{name}"] for name in OBJECTIVES} == pytest.approx(mean)
    torch.testing.assert_close(held.parameters(), fixed.parameters(), rtol=0, atol=1e-12)


def record(folder: Path, training: ToyTraining, steps: int, scale: float = 1.0) -> Path:
    """Metrics as a run writes them, at every iteration."""
    with (folder / "metrics.json").open("w") as file:
        for step in range(steps):
            scalars = training.step([toy_batch(step)])
            file.write(json.dumps({"iteration": step, **scalars}) + "\n")
    return folder


@pytest.mark.parametrize("total", [1.0, None])
@pytest.mark.parametrize("balancer", [Amortized, ClosedForm])
def test_a_run_that_replays_itself_repeats_itself(
    tmp_path: Path, balancer: type, total: float | None
) -> None:
    original = ToyTraining(balancer(total=total), ToyStudent())
    run = record(tmp_path, original, 12)
    repeated = ToyTraining(Replay(run, total=total), ToyStudent())
    raw = ToyTraining(Replay(run, of="losses"), ToyStudent())
    other = ToyTraining(Replay(run, total=total), ToyStudent(seed=3))
    rows = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    for step in range(12):
        repeated.step([toy_batch(step)])
        raw.step([toy_batch(step)])
        scalars = other.step([toy_batch(step + 50)])
        assert all(scalars[f"pi/{name}"] == rows[step][f"pi/{name}"] for name in OBJECTIVES), "open loop"
    torch.testing.assert_close(repeated.parameters(), original.parameters(), rtol=0, atol=1e-12)
    torch.testing.assert_close(raw.parameters(), original.parameters(), rtol=0, atol=1e-12)


def test_between_records_the_weights_are_linear_and_beyond_them_constant() -> None:
    balancer = Replay(RECORDED_RUN)
    balancer.setup(OBJECTIVES)
    assert balancer.weights_at(30) == pytest.approx([0.15, 0.575, 0.275])
    assert balancer.weights_at(500) == pytest.approx([0.06, 0.7, 0.24])


def test_a_resumed_control_keeps_its_weights_whatever_became_of_the_run(tmp_path: Path) -> None:
    run = record(tmp_path, ToyTraining(Amortized(), ToyStudent()), 6)
    first = Replay(run)
    first.setup(OBJECTIVES)
    state = first.state_dict()
    record(tmp_path, ToyTraining(Amortized(), ToyStudent(seed=5)), 9)
    second = Replay(run)
    second.setup(OBJECTIVES)
    assert not (second.weights_at(4) == first.weights_at(4)).all()
    second.load_state_dict(state)
    assert (second.weights_at(4) == first.weights_at(4)).all()


def test_runs_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it has no metrics"):
        MeanOf(tmp_path / "nowhere").setup(OBJECTIVES)
    with pytest.raises(
        ConfigError, match=r"has not logged raw_weight/a, raw_weight/b; it has raw_weight/distill"
    ):
        MeanOf(RECORDED_RUN).setup(["a", "b"])
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "loss_ce": 1.0}\n')
    with pytest.raises(ConfigError, match=r"its balancer logs no pi/…"):
        Replay(tmp_path).setup(OBJECTIVES)
    with pytest.raises(ConfigError, match="is not one of 'losses', 'logarithms'"):
        Replay(RECORDED_RUN, of="pi")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "inner", [Amortized, ClosedForm, lambda: FixedWeights({"distill": 7, "task": 1, "boxes": 2})]
)
def test_direction_of_the_balancer_and_length_of_the_sum(inner) -> None:
    student = ToyStudent()
    shared = student.shared_parameters()
    gradients = []
    for balancer in (inner(), SumNorm(inner())):
        balancer.setup(OBJECTIVES)
        student.zero_grad()
        scalars = balancer.backward([ToyForward(student, toy_batch(0))], context_of(student))
        gradients.append([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        of_shared = torch.cat([p.grad.flatten() for p in shared if p.grad is not None])
    student.zero_grad()
    student(toy_batch(0)).sum().backward()
    plain = torch.cat([p.grad.flatten() for p in shared if p.grad is not None])
    assert of_shared.norm().item() == pytest.approx(plain.norm().item(), rel=1e-12)
    factor = float(scalars["sum_norm/factor"])
    assert factor != pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(gradients[1], [factor * g for g in gradients[0]], rtol=1e-12, atol=1e-14)


def test_only_a_balancer_has_a_direction() -> None:
    with pytest.raises(ConfigError, match=r"balancer\.balancer must be a balancer"):
        SumNorm({"weights": 1})  # type: ignore[arg-type]
