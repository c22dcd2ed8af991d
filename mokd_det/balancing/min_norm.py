"""The point of least norm in the convex hull of K gradients, from their Gram matrix (Eq. 9).

    π* = argmin ½ ‖Σ π_i g_i‖²  over the simplex  π_i ≥ 0, Σ π_i = 1,        G_ij = ⟨g_i, g_j⟩

Theorem 3.1 of the MoKD preprint solves this without π ≥ 0. The constraint is kept here: without it, gradients
that agree (g_2 = 3 g_1) get π = (1.5, −0.5) and an update of zero. See ``docs/theory.md``.

Where the minimiser is not unique, the one of least ‖π‖ is returned: it is unique and does not depend on the order of
the objectives. Equal gradients therefore share their weight equally, as do gradients that are all zero.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from torch import Tensor

__all__ = ["MAX_OBJECTIVES", "min_norm_weights", "min_norm_weights_of_live"]

MAX_OBJECTIVES = 8
"""2^K − 1 supports are examined: 255 tiny systems at K = 8."""

# ‖Σ π_i g_i‖² carries a rounding error of about 1e-16 (Σ π_i ‖g_i‖)²; differences below this are ties.
_TIE = 1e-12
# Eigenvalues of the scaled, lifted Gram matrix below this belong to linearly dependent gradients.
_DEPENDENT = 1e-12


def min_norm_weights(gram: Tensor) -> Tensor:
    """π* of Eq. 9 with the simplex constraint, (K,) float64 on the device of ``gram``; NaN if ``gram`` is not finite.

    Two objectives are solved in closed form on the device of ``gram`` without synchronising; more by examining every
    possible support on the CPU, which is exact and cheap at these sizes.

    Args:
        gram: (K, K) symmetric positive semidefinite, K ≤ 8, any floating dtype (float64 advised).

    Raises:
        ValueError: not a square matrix, or more than 8 objectives.
    """
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"a Gram matrix is square, got shape {tuple(gram.shape)}")
    count = gram.shape[0]
    if count > MAX_OBJECTIVES:
        raise ValueError(f"at most {MAX_OBJECTIVES} objectives can be solved exactly, got {count}")
    gram = gram.detach().double()
    if count == 1:
        return torch.where(gram.isfinite(), 1.0, torch.nan).reshape(1)
    if count == 2:
        return _two(gram)
    matrix = gram.cpu().numpy()
    if not np.isfinite(matrix).all():
        return torch.full((count,), torch.nan, dtype=torch.float64, device=gram.device)
    return torch.from_numpy(_search(matrix)).to(gram.device)


def min_norm_weights_of_live(gram: Tensor, threshold: float = 1e-12) -> Tensor:
    """π* over the objectives whose gradient has not vanished, (K,) float64; 1/K each if all have.

    One zero gradient makes the least norm zero, and training would stop although the other objectives can still
    improve (a batch without objects, a converged KL term). An objective with ``g_ii ≤ threshold · max_j g_jj`` is
    therefore left out of this step and gets weight 0. Opposite gradients are no such case: there g* = 0 is the right
    answer (no direction improves both).
    """
    gram = gram.detach().double()
    norms = gram.diagonal()
    alive = norms > threshold * norms.max()
    if gram.shape[0] == 2:
        # Without a branch on values: the result stays on the device.
        one = alive.double() / alive.sum().clamp(min=1)
        return torch.where(alive.all() | ~alive.any() | ~gram.isfinite().all(), min_norm_weights(gram), one)
    if gram.shape[0] == 1 or bool(alive.all()) or not bool(alive.any()) or not bool(gram.isfinite().all()):
        return min_norm_weights(gram)
    weights = torch.zeros_like(norms)
    weights[alive] = min_norm_weights(gram[alive][:, alive])
    return weights


def _two(gram: Tensor) -> Tensor:
    """π_1 = (g22 − g12) / (g11 + g22 − 2 g12), π_2 alike, clamped to [0, 1]; ½ if the gradients are equal."""
    first, cross, second = gram[0, 0], gram[0, 1], gram[1, 1]
    distance = first + second - 2 * cross
    equal = distance <= _TIE * (first + second)
    # Each from its own numerator: 1 − π_1 would lose a small π_2 to rounding.
    weights = torch.stack([second - cross, first - cross]) / torch.where(equal, 1.0, distance)
    weights = torch.where(equal, 0.5, weights.clamp(0, 1))
    return torch.where(gram.isfinite().all(), weights, torch.nan)


def _search(gram: np.ndarray) -> np.ndarray:
    """Least ‖Σ π_i g_i‖², then least ‖π‖, over the stationary points of all supports. K ≥ 3."""
    norms = np.sqrt(gram.diagonal().clip(min=0))
    points = [
        point
        for size in range(1, len(gram) + 1)
        for support in combinations(range(len(gram)), size)
        if (point := _stationary(gram, norms, list(support))) is not None
    ]
    values = np.array([point @ gram @ point for point in points])
    noise = _TIE * np.array([point @ norms for point in points]) ** 2
    best = int(values.argmin())
    tied = values - values[best] <= noise + noise[best]
    return min(
        (point for point, tie in zip(points, tied, strict=True) if tie), key=lambda point: point @ point
    )


def _stationary(gram: np.ndarray, norms: np.ndarray, support: list[int]) -> np.ndarray | None:
    """Minimiser over the affine hull of the gradients in ``support``, if it lies in their convex hull.

    Lifting every gradient by the same extra coordinate t turns the constraint Σ π = 1 into a plain linear system:
    (G + t²) x = 1, π = x / Σ x. It is solved with unit diagonal, so that norms of very different size do no harm. Of
    several solutions (dependent gradients) the one of least ‖π‖ is taken.
    """
    lengths = norms[support]
    lift = lengths[lengths > 0].min() ** 2 if lengths.any() else 1.0
    lifted = gram[np.ix_(support, support)] + lift
    scale = np.sqrt(lifted.diagonal())
    eigenvalues, vectors = np.linalg.eigh(lifted / np.outer(scale, scale))
    independent = eigenvalues > _DEPENDENT
    kept = vectors[:, independent]
    solution = kept @ ((kept.T @ (np.sqrt(lift) / scale)) / eigenvalues[independent]) / scale
    if not independent.all():
        kernel = vectors[:, ~independent] / scale[:, None]
        solution = solution - kernel @ np.linalg.lstsq(kernel, solution, rcond=None)[0]
    total = solution.sum()
    if not np.isfinite(solution).all() or total <= 0 or (solution < 0).any():
        return None
    point = np.zeros(len(gram))
    point[support] = solution / total
    return point
