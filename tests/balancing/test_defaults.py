"""What a balancer does when nothing is set: the paper's settings, and the published ones of the others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytest

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
}
CLOSED_FORM = {"update_every": 1, "total": 1.0, "min_losses": 0.0, "eps": 1e-8}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Amortized, AMORTIZED),
        (AmortizedValues, AMORTIZED),
        (ClosedForm, CLOSED_FORM),
        (ClosedFormTaps, CLOSED_FORM),
        (FixedWeights, {"weights": 1.0}),
        (GradNorm, {"alpha": 1.5, "lr": 0.025, "update_every": 1}),
        (UncertaintyWeighting, {"lr": 0.01, "update_every": 1}),
        (TorchJD, {"log_gradients": False, "update_every": 1, "seed": 0, "min_losses": 0.0, "total": None}),
    ],
)
def test_defaults(kind: type[Balancer], expected: Mapping[str, Any]) -> None:
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is not parameter.empty
    }
    assert found == expected
