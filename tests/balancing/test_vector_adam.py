"""The optimiser of weights is torch's, except that a step that is not finite leaves no mark."""

from __future__ import annotations

import pytest
import torch

from mokd_det.balancing.vector_adam import VectorAdam
from mokd_det.errors import ConfigError


@pytest.mark.parametrize("decoupled", [None, True, False])
def test_it_is_torchs(decoupled):
    """None: the default, which is AdamW's."""
    torch.manual_seed(0)
    gradients = (
        torch.randn(30, 3, dtype=torch.float64) * torch.logspace(-9, 3, 30, dtype=torch.float64)[:, None]
    )
    start = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    kind = torch.optim.Adam if decoupled is False else torch.optim.AdamW
    theirs = kind([parameter], lr=0.05, weight_decay=0.1)
    given = {} if decoupled is None else {"decoupled": decoupled}
    ours = VectorAdam(start.clone(), 0.05, 0.1, **given)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        theirs.step()
        assert ours.step(gradient)
        torch.testing.assert_close(ours.value, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_no_decay_by_default():
    ours = VectorAdam(torch.tensor([3.0]), 0.1)
    ours.step(torch.tensor([0.0]))
    assert ours.value.item() == 3.0


def test_a_gradient_that_is_not_finite_changes_nothing():
    ours = VectorAdam(torch.tensor([1.0, 2.0]), 0.1, 0.01)
    ours.step(torch.tensor([0.5, -0.5]))
    before = ours.state_dict()
    assert not ours.step(torch.tensor([1.0, float("nan")]))
    after = ours.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert after["steps"].item() == 1


def test_the_state_is_a_copy_and_continues_with_the_same_bits():
    first = VectorAdam(torch.tensor([1.0, 2.0]), 0.1, 0.01)
    first.step(torch.tensor([0.5, -0.5]))
    state = first.state_dict()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    other = VectorAdam(torch.zeros(2), 0.1, 0.01)
    other.load_state_dict(state)
    for optimizer in (first, other):
        optimizer.step(torch.tensor([0.25, 4.0]))
    assert torch.equal(first.value, other.value)
    assert all(torch.equal(state[name], kept[name]) for name in kept)


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_rates_are_not_negative(key):
    VectorAdam(torch.zeros(1), lr=0.0, weight_decay=0.0)
    for number in (-1e-9, float("nan")):
        with pytest.raises(ConfigError, match=rf"balancer\.{key} must be at least 0, not {number}"):
            VectorAdam(torch.zeros(1), **{"lr": 0.1, key: number})
