"""Dropout with masks from random bits."""

from __future__ import annotations

import pytest
import torch

from mokd_det.layers import dropout
from mokd_det.layers.dropout import draw_kept


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(400, 500), (199_999,)])
def test_share_and_mean(probability: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    out = dropout(torch.ones(shape), probability, training=True)
    # five standard deviations of a mean over 200,000
    bound = 5 * (probability * (1 - probability) / 2e5) ** 0.5
    assert (out == 0).double().mean().item() == pytest.approx(probability, abs=bound)
    kept = out[out > 0]
    assert kept.min() == kept.max() == pytest.approx(1 / (1 - probability), rel=1e-3)


def test_mask_and_factor_belong_together() -> None:
    """The factor makes up for what is dropped in fact, 6554 of 65536."""
    kept, factor = draw_kept((3, 5), 0.1, torch.device("cpu"))
    assert kept.shape == (3, 5) and kept.dtype == torch.bool
    assert factor == 65536 / (65536 - 6554)
    assert draw_kept((2,), 0.0, torch.device("cpu"))[1] == 1.0
    assert draw_kept((10_000,), 0.0, torch.device("cpu"))[0].all()


def test_neighbours_are_independent() -> None:
    """Four masks share a random number: no pair of positions may be correlated."""
    torch.manual_seed(0)
    kept = draw_kept((100_000, 8), 0.5, torch.device("cpu"))[0].double()
    correlation = torch.corrcoef(kept.T) - torch.eye(8)
    assert correlation.abs().max() < 0.02


def test_gradient_is_the_mask_and_the_seed_fixes_it() -> None:
    x = torch.randn(50, 60, requires_grad=True)
    torch.manual_seed(1)
    out = dropout(x, 0.3, training=True)
    out.sum().backward()
    torch.manual_seed(1)
    torch.testing.assert_close(x.grad, dropout(torch.ones_like(x), 0.3, training=True), rtol=0, atol=0)
    torch.testing.assert_close(out, x * x.grad)
    torch.manual_seed(2)
    assert not torch.equal(out, dropout(x, 0.3, training=True))


def test_identity_in_evaluation() -> None:
    x = torch.randn(4)
    assert torch.equal(dropout(x, 0.5, training=False), x)
    assert torch.equal(dropout(x, 0.0, training=True), x)
