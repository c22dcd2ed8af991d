"""Features of a vision foundation model in a detector's coarsest map: the "deep semantic injector" of RT-DETRv4."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import require_kind
from mokd_det.distillation.row_losses import cosine_distance
from mokd_det.distillation.rows import RowPair
from mokd_det.distillation.taps import Specs

__all__ = ["FoundationFeatures"]


class FoundationFeatures(Method):
    """Linear map of a student's map to a frozen ViT's patches, one term per tap (Liao et al. 2025).

        patch = Σ_levels mean over cells (1 − cos(W z_s + b, z_t))

    The published student's level is the coarsest of its encoder, and the teacher a DINOv3; weights 5 (S, M), 15 (L) and
    20 (X). The teacher need not detect anything: it delivers one map whose cells are the student's, that is, it sees
    the images at the size that gives its patch grid the student's stride. Choose that level in both:
    ``patch=dict(student=dict(path="patch", strides=[32]), teacher="patch")``.

    Args:
        mask_padding: leave padded cells out.
    """

    def __init__(self, mask_padding: bool = True) -> None:
        super().__init__(mask_padding)
        self.projections = nn.ModuleDict()

    def check(self, student: Specs, teacher: Specs) -> None:
        for name in student:
            require_kind("FoundationFeatures", name, "maps", student, teacher)
        super().check(student, teacher)

    def build(self, channels: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
        for keys in channels.values():
            for key, (n_s, n_t) in keys.items():
                self.projections[key] = nn.Linear(n_s, n_t)

    def compare_pair(self, pair: RowPair) -> Tensor:
        projected = self.projections[pair.key](pair.student)
        return cosine_distance(projected, pair.teacher, pair.weights, across_ranks=True)
