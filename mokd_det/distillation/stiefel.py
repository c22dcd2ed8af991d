"""Matrices with orthonormal columns, kept so by a QR retraction after every optimiser step.

The Stiefel manifold St(n, k) holds the n × k matrices with PᵀP = I. P is a plain parameter: the optimiser
moves it off the manifold, :func:`retract_` puts it back: P ← Q of P = QR, R with a positive diagonal (a bare QR may
flip any column from one step to the next). A parametrisation would instead rebuild P in every forward pass, at 10 to
2,000 times the cost for tall matrices.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.distillation.cholesky_qr import householder_qr, orthonormal_factor
from mokd_det.distillation.precision import autocast_off, full_precision

__all__ = ["StiefelLinear", "retract_"]


@torch.no_grad()
def retract_(weights: Iterable[Tensor]) -> None:
    """Put matrices back on the Stiefel manifold, in place.

    A wide (m, k) matrix, m < k, gets orthonormal rows. The factorisation
    (:func:`~mokd_det.distillation.cholesky_qr.orthonormal_factor`) is in float32 at least, with autocast off. On an
    accelerator equal shapes share one batched call, and nothing waits for it; on a CPU a matrix alone is faster. The
    result depends on nothing but the matrices, so ranks that hold equal ones stay equal.
    """
    groups: dict[tuple[object, ...], list[Tensor]] = {}
    for weight in weights:
        alone = id(weight) if weight.device.type == "cpu" else None
        groups.setdefault((alone, weight.shape, weight.dtype, weight.device), []).append(weight)
    for group in groups.values():
        wide = group[0].shape[0] < group[0].shape[1]
        with autocast_off(group[0].device):
            detached = [full_precision(w.detach()) for w in group]
            stack = torch.stack(detached) if len(group) > 1 else detached[0]
            q = orthonormal_factor(stack.mT).mT if wide else orthonormal_factor(stack)
            q = q if len(group) > 1 else q[None]
        for weight, value in zip(group, q, strict=True):
            weight.copy_(value)


class StiefelLinear(nn.Module):
    """Linear map without bias whose matrix (out_features, in_features) is orthonormal: z ↦ P z.

    With out_features ≥ in_features the columns are orthonormal (an isometry into a larger space), otherwise the rows.
    It starts as the QR factor of a Gaussian matrix, uniformly distributed over the manifold. Not ``trainable`` it is a
    fixed buffer, drawn once and kept in the checkpoint.
    """

    def __init__(self, in_features: int, out_features: int, trainable: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        weight = torch.randn(out_features, in_features)
        wide = out_features < in_features
        weight = (householder_qr(weight.mT).mT if wide else householder_qr(weight)).contiguous()
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
