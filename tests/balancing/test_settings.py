"""Settings of balancers: what holds when nothing is set, and how far a setting may go."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from mokd_det.balancing import (
    Amortized,
    AmortizedValues,
    Balancer,
    ClosedForm,
    ClosedFormTaps,
    FixedWeights,
    GradNorm,
    TorchJD,
    UncertaintyWeighting,
)
from mokd_det.errors import ConfigError
from tests.balancing.toy import ToyStudent, ToyTraining, toy_batch

AMORTIZED = {
    "pi_optimizer": "adamw",
    "lr": 0.025,
    "weight_decay": 0.01,
    "update_every": 1,
    "min_losses": 0.0,
    "eps": 1e-8,
    "pi_min": 0.0,
    "total": 1.0,
    "accumulation": "exact",
    "improvement": "log",
}
CLOSED_FORM = {"update_every": 1, "total": 1.0, "min_losses": 0.0, "eps": 1e-8, "lag": False}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Amortized, AMORTIZED),
        (AmortizedValues, AMORTIZED),
        (ClosedForm, {**CLOSED_FORM, "trunk_only": False}),
        (ClosedFormTaps, CLOSED_FORM),
        (FixedWeights, {"weights": 1.0}),
        (GradNorm, {"alpha": 1.5, "lr": 0.025, "update_every": 1, "trunk_only": False}),
        (UncertaintyWeighting, {"lr": 0.01, "update_every": 1}),
        (
            TorchJD,
            {
                "log_gradients": False,
                "update_every": 1,
                "seed": 0,
                "min_losses": 0.0,
                "total": None,
                "trunk_only": False,
            },
        ),
    ],
)
def test_defaults(kind: type[Balancer], expected: Mapping[str, Any]) -> None:
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is not parameter.empty
    }
    assert found == expected


@pytest.mark.parametrize(
    "kind", [Amortized, ClosedForm, ClosedFormTaps, lambda total: TorchJD("mgda", total=total)]
)
def test_a_total_of_zero_would_stop_everything(kind: Callable[..., Balancer]) -> None:
    kind(total=1e-9)
    for total in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"balancer\.total must be positive"):
            kind(total=total)


def test_eight_objectives_are_solved_exactly() -> None:
    names = [str(number) for number in range(9)]
    ClosedForm().setup(names[:8])
    with pytest.raises(ConfigError, match="at most 8"):
        ClosedForm().setup(names)


def test_least_weights_leave_something_to_share() -> None:
    Amortized(pi_min=0.0).setup(["a", "b", "c", "d"])
    Amortized(pi_min=0.24).setup(["a", "b", "c", "d"])
    with pytest.raises(ConfigError, match=r"\[0, 1/4\)"):
        Amortized(pi_min=0.25).setup(["a", "b", "c", "d"])


def test_weights_of_which_one_is_not_finite_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    training = ToyTraining(ClosedForm(), ToyStudent())
    training.step([toy_batch(0)])
    before = training.balancer.state_dict()["weights"].clone()
    solution = torch.tensor([float("nan"), 0.5, 0.5], dtype=torch.float64)
    monkeypatch.setattr(training.balancer, "solve", lambda *_: solution)
    training.step([toy_batch(1)])
    assert torch.equal(training.balancer.state_dict()["weights"], before)
