"""No distillation: the baseline of every table, through the same harness."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.rows import RowPair

__all__ = ["NoDistillation"]


class NoDistillation(Method):
    """The student alone: no losses, no parameters, and the teacher (which may be absent) never runs."""

    needs_teacher = False

    def __init__(self) -> None:
        super().__init__()

    def compare(self, pairs: Mapping[str, list[RowPair]]) -> dict[str, Tensor]:
        return {}
