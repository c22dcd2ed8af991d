"""MoKD's subspace head: two orthonormal projections into one space, and an indefinite diagonal metric."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.distillation.precision import autocast_off, full_precision
from mokd_det.distillation.rank import effective_rank, sample_rows
from mokd_det.distillation.row_losses import Norm, cosine_distance, l1, normalize, smooth_l1
from mokd_det.distillation.stiefel import StiefelLinear
from mokd_det.errors import ConfigError, IncompatibleModelsError, require_choice

__all__ = ["MetricInit", "StudentNorm", "SubspaceHead", "SubspaceLoss", "common_dimension"]

SubspaceLoss = Literal["similarity", "regression", "l1", "normalized_l1"]
StudentNorm = Literal["none", "before", "after"]
MetricInit = Literal["ones", "random_signs"]


def common_dimension(n_s: int, n_t: int) -> int:
    """Default dimension of the common space: n_s + n_t, rounded up to a multiple of 64 (512 for 256 and 256).

    From n_s + n_t on, {P_tᵀP_s} holds every contraction of n_s × n_t; below, only some.
    """
    return -(-(n_s + n_t) // 64) * 64


class SubspaceHead(nn.Module):
    """Distance of student rows to teacher rows in a common n-dimensional space.

        ẑ_s = D P_s z_s (+ b)        ẑ_t = P_t norm(z_t)        P_s ∈ St(n, n_s),  P_t ∈ St(n, n_t)

    P_s and P_t have orthonormal columns, D = diag(d) has free signs, so s = ẑ_tᵀ ẑ_s = z_tᵀ P_tᵀ D P_s z_s (Eq. 16) is
    an indefinite similarity. The paper leaves open how s becomes a loss (docs/readings.md); the readings that are here:

    * ``similarity``: 1 − s / (‖ẑ_t‖ ‖ẑ_s‖), the mean over rows;
    * ``regression``: smooth L1 (β = 1) between ẑ_s and ẑ_t, the mean over rows and channels;
    * ``l1``: the same without the quadratic zone, ``normalized_l1``: with both rows scaled to root mean square 1.

    The teacher's normalisation stands before P_t: after a learned P_t it would let the pair shrink the target
    to its easy directions. With n = n_t, ``learn_teacher_subspace=False``, ``loss="regression"``,
    ``norm="standardize"``, ``student_norm="after"``, ``bias=True`` and ``eps=0`` the head is VkD's detection loss.

    After every optimiser step P_s and P_t go back to the manifold (:func:`mokd_det.distillation.stiefel.retract_`;
    methods do it for all their heads at once). P, D and b take no weight decay.

    Args:
        n_s: channels of the student's rows.
        n_t: channels of the teacher's rows.
        n: dimension of the common space, at least max(n_s, n_t); None: :func:`common_dimension`.
        loss: "similarity", "regression", "l1" or "normalized_l1".
        norm: of the teacher's rows: "layer_norm" over the channels of a row, "standardize" each channel over
            the rows, or "none".
        student_norm: where the student is standardised over the rows: "before" P_s, "after" gain and bias (of
            D only the signs then survive), or "none" (D and b learn the scale).
        eps: of every normalisation.
        subspace: False: no projection, no D, no b; the rows are compared as they are and need n_s = n_t.
        learn_teacher_subspace: False: P_t is fixed, the identity if n = n_t and else the random matrix it starts with.
        metric: learn D; False: D = I.
        metric_init: D at the start: "ones", or "random_signs", each ±1 with equal chances (an indefinite metric from
            the first step).
        bias: learn b (starts at 0), which Eq. 16 does not have.

    Raises:
        ConfigError: ``n`` too small, an unknown choice.
        IncompatibleModelsError: ``subspace=False`` with n_s ≠ n_t.
    """

    def __init__(
        self,
        n_s: int,
        n_t: int,
        n: int | None = None,
        *,
        loss: SubspaceLoss = "similarity",
        norm: Norm = "layer_norm",
        student_norm: StudentNorm = "none",
        eps: float = 1e-5,
        subspace: bool = True,
        learn_teacher_subspace: bool = True,
        metric: bool = True,
        metric_init: MetricInit = "ones",
        bias: bool = False,
    ) -> None:
        super().__init__()
        require_choice("loss", loss, SubspaceLoss)
        require_choice("norm", norm, Norm)
        require_choice("student_norm", student_norm, StudentNorm)
        require_choice("metric_init", metric_init, MetricInit)
        if not subspace and n_s != n_t:
            raise IncompatibleModelsError(
                f"without a subspace the rows are compared as they are, but the student's have {n_s} "
                f"channels and the teacher's {n_t}; use subspace=True"
            )
        if not subspace:
            n = n_t
        elif n is None:
            n = common_dimension(n_s, n_t)
        elif n < max(n_s, n_t):
            raise ConfigError(
                f"common dimension n={n} is smaller than the features ({n_s} student, {n_t} teacher "
                f"channels); it must be at least {max(n_s, n_t)}"
            )
        self.n, self.loss, self.eps = n, loss, eps
        self.norm, self.student_norm = norm, student_norm
        self.student_projection: nn.Module = StiefelLinear(n_s, n) if subspace else nn.Identity()
        self.teacher_projection: nn.Module = nn.Identity()
        if subspace and (learn_teacher_subspace or n != n_t):
            self.teacher_projection = StiefelLinear(n_t, n, trainable=learn_teacher_subspace)
        signs = torch.ones(n) if metric_init == "ones" else torch.randint(0, 2, (n,)) * 2.0 - 1
        self.metric = nn.Parameter(signs) if subspace and metric else None
        self.bias = nn.Parameter(torch.zeros(n)) if subspace and bias else None
        self._target_sample: tuple[Tensor, Tensor | None] | None = None

    def project(
        self, student: Tensor, teacher: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The pair (ẑ_s, ẑ_t), each (R, n), in float32 at least; arguments as for :meth:`forward`."""
        with autocast_off(student.device):
            target = self.teacher_projection(self._normalized(teacher, weights))
            return self._project_student(student, weights), target

    def _normalized(self, teacher: Tensor, weights: Tensor | None) -> Tensor:
        """norm(z_t), (R, n_t)."""
        return normalize(full_precision(teacher.detach()), self.norm, weights, self.eps)

    def _project_student(self, student: Tensor, weights: Tensor | None) -> Tensor:
        """ẑ_s, (R, n)."""
        rows = full_precision(student)
        if self.student_norm == "before":
            rows = normalize(rows, "standardize", weights, self.eps)
        if isinstance(self.student_projection, StiefelLinear):
            matrix = self.student_projection.weight
            # D P has n · n_s numbers, D (P z) R · n: for many rows the first is cheaper, forward and backward.
            if self.metric is not None:
                matrix = self.metric[:, None] * matrix
            rows = F.linear(rows, matrix, self.bias)
        if self.student_norm == "after":
            rows = normalize(rows, "standardize", weights, self.eps)
        return rows

    def _difference(self, student: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """ẑ_s − P_t z, (R, n), for normalised teacher rows z (R, n_t), without a matrix for either alone."""
        rows = self._project_student(student, weights)
        if not isinstance(self.teacher_projection, StiefelLinear):
            return rows - target
        # No backward reads ẑ_s once D, b and P are applied; that of its standardisation does.
        add = torch.addmm if self.student_norm == "after" else Tensor.addmm_
        return add(rows, target, self.teacher_projection.weight.mT, alpha=-1)

    def forward(self, student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compare rows.

        Args:
            student: (R, n_s).
            teacher: (R, n_t); it is detached.
            weights: (R,), 0 for padding; None: all rows count.

        Returns:
            The loss, a non-negative scalar in float32 at least.
        """
        with autocast_off(student.device):
            target = self._normalized(teacher, weights)
            if self.training:
                # P_t is an isometry: their rank is that of ẑ_t.
                self._target_sample = sample_rows(target, weights)
            if self.loss == "regression":
                return smooth_l1(self._difference(student, target, weights), None, weights)
            rows, target = self._project_student(student, weights), self.teacher_projection(target)
            if self.loss == "similarity":
                return cosine_distance(rows, target, weights)
            if self.loss == "normalized_l1":
                rows, target = (F.rms_norm(z, z.shape[-1:], eps=self.eps) for z in (rows, target))
            return l1(rows, target, weights)

    def diagnostics(self) -> dict[str, float]:
        """Numbers to log now and then (each waits for the device).

        Returns:
            ``negative_metric``: how many entries of D are negative (its signature); ``orthogonality_error``: the worst
            ‖PᵀP − I‖_max; ``target_effective_rank``: of ẑ_t in the latest training forward, absent before it.
        """
        values: dict[str, float] = {}
        if self.metric is not None:
            values["negative_metric"] = float((self.metric < 0).sum())
        errors = [m.orthogonality_error() for m in self.children() if isinstance(m, StiefelLinear)]
        if errors:
            values["orthogonality_error"] = float(max(errors))
        if self._target_sample is not None:
            values["target_effective_rank"] = effective_rank(*self._target_sample)
        return values

    def extra_repr(self) -> str:
        norms = f"norm={self.norm}, student_norm={self.student_norm}, eps={self.eps}"
        return f"n={self.n}, loss={self.loss}, {norms}"
