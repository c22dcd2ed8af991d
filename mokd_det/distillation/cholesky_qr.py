"""QR factors of matrices that are nearly orthonormal, from the Cholesky factor of their Gram matrix.

With G = PᵀP = RᵀR, R upper triangular with a positive diagonal, Q = P R⁻¹ is the Q of P = QR: the same matrix that
Householder reflections give, for n k² + k³/3 + n k² operations where those take 4 n k² − 4 k³/3, all of them matrix
products or triangular solves. What is lost of the orthogonality grows with the square of P's condition, so it serves
for matrices that one optimiser step moved off the manifold and not for any.
"""

from __future__ import annotations

import functools
import logging

import torch
from detectron2.utils.logger import log_first_n
from torch import Tensor

from mokd_det.distillation.precision import tf32_off

__all__ = ["householder_qr", "orthonormal_factor", "shifted_cholesky_qr"]

_NEAR = 0.1
"""Largest entry of PᵀP − I with which the Gram matrix is trusted at all."""
_SURE = 0.5
"""‖PᵀP − I‖_∞ up to which P's squared condition is at most 3, and nothing is lost."""
_TOLERANCE = 64
"""Rows of QᵀQ − I may have this length, in machine epsilons (float32: 7.6e-6); Householder's have 5 to 15."""


def orthonormal_factor(matrices: Tensor) -> Tensor:
    """The Q factors of (..., n, k) matrices, n ≥ k, in the decomposition whose R has a positive diagonal.

    On the CPU from the Cholesky factor where that is accurate, which is checked, and by Householder reflections where
    it is not (said once in the log). On an accelerator a check would make the host wait, and Householder's
    reflections are slow: there :func:`shifted_cholesky_qr` gives the factor of any matrix that an optimiser leaves.
    """
    if matrices.device.type != "cpu":
        return shifted_cholesky_qr(matrices)
    if matrices.ndim > 2:
        # One by one they stay in the processor's cache, which a batch leaves between any two operations.
        return torch.stack([orthonormal_factor(matrix) for matrix in matrices])
    gram = _lower_gram(matrices)
    off = _deviation(gram)
    if float(off.amax()) >= _NEAR:
        return _by_householder(matrices)
    factor, info = torch.linalg.cholesky_ex(gram)
    if bool(info):
        return _by_householder(matrices)
    q = _divide(matrices, factor)
    # Row and column of the lower triangle together hold a row of the symmetric matrix.
    sure = float((off.sum(0) + off.sum(1)).amax()) <= _SURE
    return q if sure or _is_orthonormal(q) else _by_householder(matrices)


def shifted_cholesky_qr(matrices: Tensor) -> Tensor:
    """The same without a branch: three Cholesky factors, of which the first is of G + s I (Fukaya et al., 2020).

    The shift s = eps · tr G keeps the first one positive definite; the others take away what it left. Float32 matrices
    of a condition up to 1e4 come out orthonormal; one that has lost its rank comes out as NaN, which stops the
    training at its next step.
    """
    with tf32_off(matrices.device):
        q = matrices
        for shifted in (True, False, False):
            gram = q.mT @ q
            if shifted:
                diagonal = gram.diagonal(dim1=-2, dim2=-1)
                diagonal.add_(torch.finfo(q.dtype).eps * diagonal.sum(-1, keepdim=True))
            factor, _ = torch.linalg.cholesky_ex(gram)
            q = _divide(q, factor)
        return q


def householder_qr(matrices: Tensor) -> Tensor:
    """The same factors by Householder reflections, for (..., n, k) matrices of any condition."""
    q, r = torch.linalg.qr(matrices)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    return q * torch.where(diagonal < 0, -1, 1).to(q.dtype).unsqueeze(-2)


def _by_householder(matrices: Tensor) -> Tensor:
    log_first_n(
        logging.INFO,
        f"Matrices of shape {tuple(matrices.shape[-2:])} were moved too far in one step for a retraction by their "
        f"Gram matrix; Householder reflections are used where that happens",
        name=__name__,
    )
    return householder_qr(matrices)


def _divide(matrices: Tensor, factor: Tensor) -> Tensor:
    """P R⁻¹ for the lower factor Rᵀ."""
    return torch.linalg.solve_triangular(factor.mT, matrices, upper=True, left=False)


def _lower_gram(matrix: Tensor) -> Tensor:
    """PᵀP (k, k), its lower triangle only: what is above is zero or right, and no Cholesky factor reads it."""
    k = matrix.shape[-1]
    # Small products run slower: from 64 columns on, eight strips leave 9/16 of the operations.
    width = max(64, -(-k // 8))
    gram = matrix.new_zeros(k, k)
    for start in range(0, k, width):
        end = min(start + width, k)
        torch.mm(matrix[:, start:end].mT, matrix[:, :end], out=gram[start:end, :end])
    return gram


def _deviation(gram: Tensor) -> Tensor:
    """|G − I| of the lower triangle, (k, k)."""
    off = gram.tril()
    off.diagonal().sub_(1)
    return off.abs_()


def _is_orthonormal(q: Tensor) -> bool:
    """Whether the rows of QᵀQ − I are short, from what it makes of a few random vectors."""
    probes = _probes(q.shape[-1], q.dtype)
    rows = (q.mT @ (q @ probes) - probes).square().mean(-1).sqrt()
    return float(rows.amax()) <= _TOLERANCE * torch.finfo(q.dtype).eps


@functools.lru_cache(maxsize=8)
def _probes(k: int, dtype: torch.dtype) -> Tensor:
    # Their own generator: the training's random numbers must not depend on a check.
    return torch.randn(k, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
