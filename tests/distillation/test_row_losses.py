"""Normalisations and losses on weighted rows."""

from __future__ import annotations

import pytest
import torch

from mokd_det.distillation.rank import effective_rank, sample_rows
from mokd_det.distillation.row_losses import (
    cosine_distance,
    mean_euclidean,
    normalize,
    smooth_l1,
    standardize,
    weighted_mean,
)


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a, b = torch.randn(2, 40, 6, dtype=torch.float64) * 3 + 1
    weights = (torch.rand(40) > 0.4).double()
    return a, b, weights


@pytest.mark.parametrize("loss", [smooth_l1, cosine_distance, mean_euclidean])
def test_rows_of_weight_zero_do_not_exist(loss, rows) -> None:
    a, b, weights = rows
    keep = weights > 0
    torch.testing.assert_close(loss(a, b, weights), loss(a[keep], b[keep]))
    torch.testing.assert_close(loss(a, b, torch.ones(40)), loss(a, b))


def test_standardize_takes_its_moments_from_valid_rows_only(rows) -> None:
    a, _, weights = rows
    keep = weights > 0
    masked = standardize(a, weights, eps=1e-5)
    torch.testing.assert_close(masked[keep], standardize(a[keep], eps=1e-5))
    torch.testing.assert_close(masked[keep].mean(0), torch.zeros(6, dtype=torch.float64))
    exact = standardize(a, eps=0)
    torch.testing.assert_close(exact.std(0), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.0, 0.0])])
def test_standardize_of_constant_channels_and_single_rows_is_finite(weights) -> None:
    constant = torch.full((3, 2), 7.0, requires_grad=True)
    out = standardize(constant, weights)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(3, 2))
    assert torch.isfinite(constant.grad).all()
    assert torch.isfinite(standardize(torch.randn(1, 4))).all()


def test_a_batch_of_padding_only_has_loss_zero() -> None:
    a = torch.randn(5, 3, requires_grad=True)
    loss = smooth_l1(standardize(a, torch.zeros(5)), torch.randn(5, 3), torch.zeros(5))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(a.grad, torch.zeros(5, 3))


def test_layer_norm_normalises_each_row(rows) -> None:
    out = normalize(rows[0], "layer_norm", eps=0)
    torch.testing.assert_close(out.mean(1), torch.zeros(40, dtype=torch.float64))
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(40, dtype=torch.float64))
    assert normalize(rows[0], "none") is rows[0]
    with pytest.raises(ValueError, match="'batch'"):
        normalize(rows[0], "batch")  # type: ignore[arg-type]


def test_parallel_rows_never_give_a_negative_distance() -> None:
    rows = torch.randn(2000, 7)
    distances = torch.stack([cosine_distance(row[None], 3 * row[None]) for row in rows])
    assert (distances >= 0).all()
    assert distances.max() < 1e-6
    torch.testing.assert_close(cosine_distance(rows, -rows), torch.tensor(2.0))


def test_euclidean_distance_has_gradient_zero_at_equality() -> None:
    a = torch.randn(4, 3, requires_grad=True)
    mean_euclidean(a, a.detach()).backward()
    assert torch.equal(a.grad, torch.zeros(4, 3))


def test_weighted_mean_of_half_precision_weights_keeps_the_values_type() -> None:
    assert weighted_mean(torch.ones(3, dtype=torch.float64), torch.ones(3)).dtype == torch.float64


def test_effective_rank_counts_equal_directions() -> None:
    directions = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0][:4]
    rows = torch.cat([directions, -directions])
    assert effective_rank(rows) == pytest.approx(4)
    assert effective_rank(torch.ones(5, 3)) == 0
    assert effective_rank(
        torch.cat([rows, torch.randn(9, 12)]), torch.tensor([1.0] * 8 + [0.0] * 9)
    ) == pytest.approx(4)
    isometry = torch.linalg.qr(torch.randn(20, 12, dtype=torch.float64))[0]
    assert effective_rank(rows @ isometry.mT) == pytest.approx(4)


def test_sampled_rows_are_a_copy() -> None:
    rows = torch.randn(5000, 2, requires_grad=True)
    sample, weights = sample_rows(rows, torch.ones(5000), count=1000)
    assert sample.shape == (1000, 2) and weights.shape == (1000,)
    assert not sample.requires_grad and sample.untyped_storage().nbytes() == 8000
