"""Projector baselines."""

from __future__ import annotations

import pytest
import torch

from mokd_det.distillation.projectors import build_projector
from mokd_det.distillation.stiefel import StiefelLinear
from mokd_det.errors import ConfigError

KINDS = ["linear", "orthogonal", "mlp", "ensemble"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_s", "n_t"), [(4, 7), (7, 4)])
def test_shapes_gradients_and_no_running_statistics(kind, n_s, n_t) -> None:
    projector = build_projector(kind, n_s, n_t)
    rows = torch.randn(12, n_s, requires_grad=True)
    out = projector(rows)
    out.pow(3).sum().backward()
    assert out.shape == (12, n_t)
    assert rows.grad.abs().sum() > 0
    assert not list(projector.buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_weight_zero_do_not_move_the_others(kind) -> None:
    projector = build_projector(kind, 4, 6)
    rows = torch.randn(12, 4)
    weights = torch.tensor([1.0] * 8 + [0.0] * 4)
    torch.testing.assert_close(projector(rows, weights)[:8], projector(rows[:8]))


def test_orthogonal_with_gain_and_bias() -> None:
    projector = build_projector("orthogonal", 4, 6)
    with torch.no_grad():
        projector.gain.fill_(2)
        projector.bias.fill_(-1)
    rows = torch.randn(5, 4)
    torch.testing.assert_close(projector(rows), 2 * rows @ projector.linear.weight.mT - 1)
    assert isinstance(projector.linear, StiefelLinear)
    assert [n for n, _ in build_projector("orthogonal", 4, 6, affine=False).named_parameters()] == [
        "linear.weight"
    ]


def test_an_orthogonal_projector_may_be_fixed() -> None:
    projector = build_projector("orthogonal", 4, 6, affine=False, trainable=False)
    assert not list(projector.parameters()) and "linear.weight" in projector.state_dict()


def test_the_ensembles_relu_is_a_switch() -> None:
    rows = torch.randn(50, 4)
    assert (build_projector("ensemble", 4, 6)(rows) >= 0).all()
    signed = build_projector("ensemble", 4, 6, count=5, relu=False)
    assert len(signed.members) == 5
    assert (signed(rows) < 0).any()
    torch.testing.assert_close(signed(rows), sum(m(rows) for m in signed.members) / 5)


def test_mlp_equals_batch_norm_between_two_layers() -> None:
    projector = build_projector("mlp", 4, 6)
    rows = torch.randn(4000, 4)
    hidden = torch.nn.functional.batch_norm(projector.first(rows), None, None, training=True)
    torch.testing.assert_close(projector(rows), projector.second(hidden.relu()), rtol=1e-3, atol=1e-3)


def test_unknown_kinds_and_options_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"'conv'.*'linear', 'orthogonal'"):
        build_projector("conv", 4, 6)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'linear'.*relu"):
        build_projector("linear", 4, 6, relu=True)
    with pytest.raises(ConfigError, match="count=0"):
        build_projector("ensemble", 4, 6, count=0)
