"""The QR factor from the Cholesky factor of the Gram matrix: equal to Householder's, and orthonormal for good."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mokd_det.distillation import cholesky_qr
from mokd_det.distillation.cholesky_qr import householder_qr, orthonormal_factor, shifted_cholesky_qr
from mokd_det.distillation.stiefel import StiefelLinear, retract_


def error(q: Tensor) -> float:
    q = q.detach().double()
    return float((q.mT @ q - torch.eye(q.shape[-1], dtype=torch.float64)).abs().max())


def moved(shape: tuple[int, ...], size: float, seed: int = 0) -> Tensor:
    """Orthonormal columns after a step whose entries are at most ``size``, float64."""
    generator = torch.Generator().manual_seed(seed)
    start = householder_qr(torch.randn(shape, generator=generator, dtype=torch.float64))
    return start + size * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)


@given(
    k=st.integers(1, 90),
    extra=st.integers(0, 60),
    batch=st.integers(1, 3),
    size=st.floats(0, 2e-3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_both_equal_householders_factor_of_a_matrix_near_the_manifold(k, extra, batch, size, seed) -> None:
    matrices = moved((batch, k + extra, k), size, seed)
    expected = householder_qr(matrices)
    for factor in (orthonormal_factor, shifted_cholesky_qr):
        torch.testing.assert_close(factor(matrices), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(256, 256), (512, 256), (3024, 192), (2, 700, 600)])
def test_wide_matrices_whose_gram_matrix_comes_in_strips(shape, caplog) -> None:
    matrices = moved(shape, 1e-4)
    with caplog.at_level(logging.INFO):
        torch.testing.assert_close(orthonormal_factor(matrices), householder_qr(matrices), rtol=0, atol=1e-12)
        assert error(orthonormal_factor(matrices.float()).reshape(-1, *shape[-2:])[-1]) < 2e-6
    assert "Householder" not in caplog.text


def test_a_matrix_far_from_the_manifold_goes_to_householder_and_the_log_says_so_once(
    caplog, monkeypatch
) -> None:
    taken = []
    monkeypatch.setattr(
        cholesky_qr, "householder_qr", lambda m: taken.append(tuple(m.shape)) or householder_qr(m)
    )
    far = torch.randn(40, 20, dtype=torch.float64)
    thin = moved((40, 20), 1e-4)
    thin[:, 1] = thin[:, 0] + 1e-9 * thin[:, 1]
    with caplog.at_level(logging.INFO):
        for matrices in (far, thin, torch.stack([moved((40, 20), 1e-4), far])):
            torch.testing.assert_close(orthonormal_factor(matrices), householder_qr(matrices))
    assert taken == [(40, 20)] * 3
    assert caplog.text.count("Householder") <= 1


def test_an_inaccurate_factor_is_noticed(monkeypatch) -> None:
    """The step is small by every entry, but the Gram matrix' rows are long, so that the result itself is looked at."""
    generator = torch.Generator().manual_seed(0)
    start = householder_qr(torch.randn(200, 100, generator=generator))
    direction = torch.ones(100) / 10
    # Every entry of PᵀP − I is -0.0099, together they take one direction nearly away.
    flat = start - (1 - 0.1) * (start @ direction)[:, None] * direction
    assert float((flat.mT @ flat - torch.eye(100)).abs().max()) < 0.1
    assert error(orthonormal_factor(flat)) < 8e-6
    flatter = start - (1 - 2e-4) * (start @ direction)[:, None] * direction
    torch.testing.assert_close(orthonormal_factor(flatter), householder_qr(flatter), rtol=0, atol=0)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_the_branchless_factor_serves_any_condition_that_a_step_leaves(condition) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        householder_qr(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in ((96, 48), (48, 48))
    )
    matrix = (left * torch.linspace(1, 1 / condition, 48, dtype=torch.float64)) @ right
    assert error(shifted_cholesky_qr(matrix.float())) < 2e-6
    torch.testing.assert_close(
        shifted_cholesky_qr(matrix), householder_qr(matrix), rtol=0, atol=1e-14 * condition**2 + 1e-12
    )


def test_a_lost_rank_shows_as_nan_without_a_branch() -> None:
    matrix = torch.randn(20, 10)
    matrix[:, 3] = float("nan")
    assert shifted_cholesky_qr(matrix).isnan().any()


def test_the_check_draws_no_number_of_the_training() -> None:
    state = torch.get_rng_state()
    cholesky_qr._probes.cache_clear()
    cholesky_qr._is_orthonormal(torch.eye(5))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("factor", "n_in", "n_out", "weight_decay"),
    [
        (orthonormal_factor, 12, 40, 0.05),
        (shifted_cholesky_qr, 12, 40, 0.0),
        pytest.param(orthonormal_factor, 256, 512, 0.0, marks=pytest.mark.slow),
        pytest.param(shifted_cholesky_qr, 256, 512, 0.05, marks=pytest.mark.slow),
        pytest.param(orthonormal_factor, 256, 256, 0.05, marks=pytest.mark.slow),
        pytest.param(orthonormal_factor, 192, 3024, 0.0, marks=pytest.mark.slow),
        pytest.param(orthonormal_factor, 192, 3024, 0.05, marks=pytest.mark.slow),
    ],
)
def test_orthogonality_after_a_thousand_adamw_steps(factor, n_in, n_out, weight_decay, monkeypatch) -> None:
    monkeypatch.setattr("mokd_det.distillation.stiefel.orthonormal_factor", factor)
    torch.manual_seed(0)
    layer = StiefelLinear(n_in, n_out)
    start = layer.weight.detach().clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=weight_decay, fused=True)
    rows = torch.randn(32, n_in)
    target = rows @ householder_qr(torch.randn(n_out, n_in)).mT
    for _ in range(1000):
        optimizer.zero_grad()
        nn.functional.smooth_l1_loss(layer(rows), target).backward()
        optimizer.step()
        retract_([layer.weight])
    assert layer.orthogonality_error() <= 1e-5
    assert (layer.weight - start).abs().max() > 0.01


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same_factor_and_nothing_waits() -> None:
    matrices = moved((3, 512, 256), 1e-4)
    weights = [matrix.float().cuda() for matrix in matrices]
    retract_(weights)  # libraries wait when they start
    for weight, matrix in zip(weights, matrices, strict=True):
        weight.copy_(matrix)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        retract_(weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.backends.cuda.matmul.allow_tf32 = False
    for weight, expected in zip(weights, householder_qr(matrices), strict=True):
        assert error(weight.cpu()) < 2e-6
        torch.testing.assert_close(weight.cpu().double(), expected, rtol=0, atol=1e-6)
