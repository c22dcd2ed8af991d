"""Normalisations and losses on feature rows (R, C), with an optional weight per row.

A row is one token or one cell of a feature map. Weights are constants, 0 for rows that carry no signal
(padding); they enter as products, never as indices, so nothing here makes the host wait for the device.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mokd_det.distillation.across_ranks import mean_over_ranks, sum_over_ranks

__all__ = [
    "Norm",
    "cosine_distance",
    "l1",
    "mean_euclidean",
    "moments",
    "normalize",
    "smooth_l1",
    "standardize",
    "weighted_mean",
]

Norm = Literal["layer_norm", "standardize", "none"]


def weighted_mean(values: Tensor, weights: Tensor | None, across_ranks: bool = False) -> Tensor:
    """Mean of (R,) values over the rows.

    Args:
        values: (R,).
        weights: (R,), non-negative; None: all 1. If all are 0 the mean is 0.
        across_ranks: divide by the mean over processes of the weights' sums, so that the mean of the results is that of
            all rows, however many each process has.
    """
    if weights is None:
        if not across_ranks:
            return values.mean()
        weights = torch.ones_like(values)
    weights = weights.to(values.dtype)
    total = weights.sum()
    if across_ranks:
        total = mean_over_ranks(total)
    # A batch without any valid row has a sum of 0 above the fraction as well.
    return (values * weights).sum() / total.clamp_min(torch.finfo(values.dtype).tiny)


def moments(rows: Tensor, weights: Tensor | None = None, across_ranks: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance (C,) of each channel of rows (R, C); arguments as for :func:`standardize`."""
    if weights is None and not across_ranks:
        mean = rows.mean(0)
        return mean, (rows - mean).square().sum(0) / max(rows.shape[0] - 1, 1)
    weights = rows.new_ones(len(rows)) if weights is None else weights.to(rows.dtype)
    total, moment = weights.sum(), weights @ rows
    if across_ranks:
        total, moment = sum_over_ranks(total), sum_over_ranks(moment)
    mean = moment / total.clamp_min(1)
    moment = weights @ (rows - mean).square()
    if across_ranks:
        moment = sum_over_ranks(moment)
    return mean, moment / (total - 1).clamp_min(1)


def standardize(
    rows: Tensor, weights: Tensor | None = None, eps: float = 1e-5, across_ranks: bool = False
) -> Tensor:
    """Per channel over the rows: mean 0 and unbiased variance 1 (VkD's normalisation for detection).

    Args:
        rows: (R, C).
        weights: (R,) of 0 and 1: the rows that count for the moments; None: all.
        eps: added to the variance, so that a constant channel gives 0; with 0, as in VkD's published code, NaN.
        across_ranks: over the rows of all processes.
    """
    mean, variance = moments(rows, weights, across_ranks)
    return (rows - mean) / (variance + eps).sqrt()


def normalize(rows: Tensor, how: Norm, weights: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise rows (R, C).

    Args:
        rows: (R, C).
        how: "layer_norm" over the channels of each row, without affine parameters; "standardize" each channel; "none".
        weights, eps: see :func:`standardize`.
    """
    if how == "layer_norm":
        return F.layer_norm(rows, rows.shape[-1:], eps=eps)
    if how == "standardize":
        return standardize(rows, weights, eps)
    if how == "none":
        return rows
    raise ValueError(f"norm is one of {', '.join(get_args(Norm))}, not {how!r}")


def smooth_l1(prediction: Tensor, target: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """Smooth L1 (β = 1), the mean over channels and rows of (R, C); ``target`` None: of the differences themselves."""
    if target is None:
        target = prediction.new_zeros(()).expand_as(prediction)
    if weights is None:
        return F.smooth_l1_loss(prediction, target)
    return weighted_mean(F.smooth_l1_loss(prediction, target, reduction="none").mean(1), weights)


def l1(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Absolute differences, the mean over channels and rows of (R, C)."""
    return weighted_mean((prediction - target).abs().mean(1), weights)


def cosine_distance(
    prediction: Tensor, target: Tensor, weights: Tensor | None = None, across_ranks: bool = False
) -> Tensor:
    """1 - cosine, the mean over the rows of (R, C); in [0, 2]. ``across_ranks``: see :func:`weighted_mean`."""
    # Rounding leaves the cosine of parallel rows a little above 1; a negative loss has no logarithm.
    distance = (1 - F.cosine_similarity(prediction, target, dim=1)).clamp_min(0)
    return weighted_mean(distance, weights, across_ranks)


def mean_euclidean(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Euclidean distance of two rows, the mean over the rows of (R, C); its gradient at equal rows is 0."""
    return weighted_mean(torch.linalg.vector_norm(prediction - target, dim=1), weights)
