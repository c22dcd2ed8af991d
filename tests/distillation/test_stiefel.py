"""Orthonormal matrices and their retraction."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mokd_det.distillation.cholesky_qr import householder_qr
from mokd_det.distillation.stiefel import StiefelLinear, retract_


@pytest.mark.parametrize("case", ["square_6x6", "tall_8x3"])
def test_retraction_reproduces_the_stored_matrices(goldens, case) -> None:
    stored = {k: torch.tensor(v, dtype=torch.float64) for k, v in goldens["orthogonal"][case].items()}
    plain = stored["P_init"] - stored["eta"] * stored["grad"]
    riemannian = stored["P_init"] - stored["eta"] * stored["riemannian_grad"]
    for matrix, expected in (
        (stored["W0"], "P_init"),
        (plain, "P_qr_of_plain_step"),
        (riemannian, "P_qr_retraction"),
    ):
        torch.testing.assert_close(householder_qr(matrix), stored[expected], rtol=0, atol=1e-10)
        retract_([matrix])
        torch.testing.assert_close(matrix, stored[expected], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n_in", "n_out"), [(5, 12), (7, 7), (12, 5)])
def test_orthogonality_survives_a_thousand_adamw_steps_with_weight_decay(n_in, n_out) -> None:
    layer = StiefelLinear(n_in, n_out)
    assert layer.orthogonality_error() < 1e-6
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.05)
    start, rows, target = layer.weight.detach().clone(), torch.randn(16, n_in), torch.randn(16, n_out)
    for _ in range(1000):
        loss = (layer(rows) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        layer.retract_()
    assert layer.orthogonality_error() <= 1e-5
    assert (layer.weight - start).abs().max() > 0.1


def test_orthogonality_of_a_tall_matrix() -> None:
    layer = StiefelLinear(192, 3024)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(8, 192)).pow(3).mean().backward()
        optimizer.step()
        assert layer.orthogonality_error() > 1e-3
        retract_([layer.weight])
    assert layer.orthogonality_error() <= 1e-5


def test_retraction_flips_no_column_of_an_orthonormal_matrix() -> None:
    for _ in range(20):
        weight = torch.linalg.qr(torch.randn(9, 4))[0] * torch.tensor([1.0, -1.0, -1.0, 1.0])
        moved = weight.clone()
        retract_([moved])
        torch.testing.assert_close(moved, weight, rtol=0, atol=1e-6)


def test_a_batch_of_matrices_is_retracted_like_each_alone() -> None:
    weights = [torch.randn(shape) for shape in ((8, 3), (8, 3), (3, 8), (5, 5), (8, 3))]
    alone = [weight.clone() for weight in weights]
    again = [weight.clone() for weight in weights]
    for weight in alone:
        retract_([weight])
    retract_(weights)
    retract_(again)
    for weight, single, repeated in zip(weights, alone, again, strict=True):
        torch.testing.assert_close(weight, single)
        assert torch.equal(weight, repeated)


def test_half_precision_matrices_are_retracted_in_float32() -> None:
    weight = torch.randn(16, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = householder_qr(weight.float())
        retract_([weight])
    assert torch.equal(weight, expected.bfloat16())


def test_a_fixed_matrix_is_a_buffer() -> None:
    layer = StiefelLinear(4, 9, trainable=False)
    assert not list(layer.parameters())
    assert list(layer.state_dict()) == ["weight"]
    assert not layer.trainable and StiefelLinear(4, 9).trainable


def test_the_map_is_an_isometry() -> None:
    rows = torch.randn(10, 4)
    torch.testing.assert_close(StiefelLinear(4, 9)(rows).norm(dim=1), rows.norm(dim=1))
    assert isinstance(StiefelLinear(4, 9).weight, nn.Parameter)
