"""Regression of the teacher's rows from projected student rows: the projector baselines of MoKD's Fig. 6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.projectors import ProjectorKind, build_projector
from mokd_det.distillation.row_losses import Norm, normalize, smooth_l1
from mokd_det.distillation.rows import RowPair
from mokd_det.distillation.subspace import StudentNorm
from mokd_det.errors import require_choice

__all__ = ["ProjectorMatching"]


class ProjectorMatching(Method):
    """Smooth L1 (β = 1, mean) between projector(z_s) and norm(z_t); one projector per tap and map level.

    The teacher has no projection, so only the projector differs between the baselines. The stack of decoder
    levels shares one projector and makes one term.

    Args:
        projector: "linear", "orthogonal", "mlp" or "ensemble".
        options: further arguments of the projector's class (``relu=False`` for the ensemble, for instance).
        norm: of the teacher's rows.
        student_norm: standardise the student's rows "before" the projector, "after" it, or not ("none").
        eps: of the normalisations.
        mask_padding: leave padded cells out of the losses on maps.
    """

    def __init__(
        self,
        projector: ProjectorKind = "linear",
        *,
        options: Mapping[str, Any] | None = None,
        norm: Norm = "layer_norm",
        student_norm: StudentNorm = "none",
        eps: float = 1e-5,
        mask_padding: bool = True,
    ) -> None:
        super().__init__(mask_padding)
        require_choice("norm", norm, Norm)
        require_choice("student_norm", student_norm, StudentNorm)
        self.projector, self.options = projector, dict(options or {})
        self.norm, self.student_norm, self.eps = norm, student_norm, eps
        self.projectors = nn.ModuleDict()

    def build(self, channels: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
        for keys in channels.values():
            for key, (n_s, n_t) in keys.items():
                self.projectors[key] = build_projector(self.projector, n_s, n_t, **self.options)

    def compare_pair(self, pair: RowPair) -> Tensor:
        target = normalize(pair.teacher, self.norm, pair.weights, self.eps)
        rows = pair.student
        if self.student_norm == "before":
            rows = normalize(rows, "standardize", pair.weights, self.eps)
        rows = self.projectors[pair.key](rows, pair.weights)
        if self.student_norm == "after":
            rows = normalize(rows, "standardize", pair.weights, self.eps)
        return smooth_l1(rows, target, pair.weights)
