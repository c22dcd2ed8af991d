"""Matrices with orthonormal columns, kept so by a QR retraction after every optimiser step.

The Stiefel manifold St(n, k) holds the n × k matrices with PᵀP = I. P is a plain parameter: the optimiser
moves it off the manifold, :func:`retract_` puts it back (P ← Q·diag(sign(diag R)) of P = QR). A
parametrisation would instead rebuild P in every forward pass, at 10 to 100 times the cost for tall matrices.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.distillation.precision import autocast_off, full_precision

__all__ = ["StiefelLinear", "qr_orthonormal", "retract_"]


def qr_orthonormal(matrices: Tensor) -> Tensor:
    """The Q factors of (..., n, k) matrices, n ≥ k, in the decomposition whose R has a positive diagonal.

    The sign rule makes the factor unique, hence a continuous function of the matrix; a bare QR may flip any
    column from one step to the next.
    """
    q, r = torch.linalg.qr(matrices)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    return q * torch.where(diagonal < 0, -1, 1).to(q.dtype).unsqueeze(-2)


@torch.no_grad()
def retract_(weights: Iterable[Tensor]) -> None:
    """Put matrices back on the Stiefel manifold, in place.

    A wide (m, k) matrix, m < k, gets orthonormal rows. Equal shapes share one batched QR, in float32 at
    least, with autocast off; the result depends on nothing but the matrices, so ranks that hold equal ones
    stay equal.
    """
    groups: dict[tuple[object, ...], list[Tensor]] = {}
    for weight in weights:
        groups.setdefault((weight.shape, weight.dtype, weight.device), []).append(weight)
    for group in groups.values():
        wide = group[0].shape[0] < group[0].shape[1]
        with autocast_off(group[0].device):
            stack = full_precision(torch.stack([w.detach() for w in group]))
            q = qr_orthonormal(stack.mT).mT if wide else qr_orthonormal(stack)
        for weight, value in zip(group, q, strict=True):
            weight.copy_(value)


class StiefelLinear(nn.Module):
    """Linear map without bias whose matrix (out_features, in_features) is orthonormal: z ↦ P z.

    With out_features ≥ in_features the columns are orthonormal (an isometry into a larger space), otherwise
    the rows. It starts as the QR factor of a Gaussian matrix, uniformly distributed over the manifold.

    Args:
        in_features: n_s or n_t.
        out_features: n, the common dimension.
        trainable: a parameter; False: a fixed buffer, drawn once and kept in the checkpoint.
    """

    def __init__(self, in_features: int, out_features: int, trainable: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        weight = torch.randn(out_features, in_features)
        retract_([weight])
        if trainable:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        return F.linear(rows, self.weight)

    @property
    def trainable(self) -> bool:
        return isinstance(self.weight, nn.Parameter) and self.weight.requires_grad

    def retract_(self) -> None:
        """Put the matrix back on the manifold; :func:`retract_` does so for several at once."""
        retract_([self.weight])

    @torch.no_grad()
    def orthogonality_error(self) -> Tensor:
        """‖PᵀP − I‖_max (of PPᵀ for a wide matrix), a scalar in float64."""
        p = self.weight.double()
        gram = p @ p.mT if self.out_features < self.in_features else p.mT @ p
        return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().max()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, trainable={self.trainable}"
