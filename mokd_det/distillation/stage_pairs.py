"""Stages of two networks, paired from the deepest one up: for methods whose maps differ in stride."""

from __future__ import annotations

from torch import Tensor

from mokd_det.distillation.precision import full_precision
from mokd_det.distillation.taps import Specs, Taps
from mokd_det.errors import IncompatibleModelsError

__all__ = ["StagePairs"]


class StagePairs:
    """The deepest k maps of both models, shallow to deep; k is the smaller number of maps.

    The CIFAR networks deliver their stem's map too where they deliver activations, and not where they deliver
    pre-activations: counted from the deepest, stage meets stage.
    """

    def __init__(self, name: str, student: Specs, teacher: Specs) -> None:
        self.name = name
        of_student, of_teacher = student[name], teacher[name]
        count = self.count = min(len(of_student.channels), len(of_teacher.channels))
        self.channels = list(zip(of_student.channels[-count:], of_teacher.channels[-count:], strict=True))
        self.strides = list(zip(of_student.strides[-count:], of_teacher.strides[-count:], strict=True))

    def __call__(self, student: Taps, teacher: Taps) -> list[tuple[Tensor, Tensor]]:
        """The maps (B, C_s, H_s, W_s) and (B, C_t, H_t, W_t) of each stage; no gradient reaches the teacher's.

        Raises:
            IncompatibleModelsError: values that are no maps, or fewer than described.
        """
        value_s, value_t = student[self.name], teacher[self.name]
        if not isinstance(value_s, list) or not isinstance(value_t, list):
            raise IncompatibleModelsError(f"tap {self.name!r}: both models must deliver maps")
        deepest = zip(value_s[-self.count :], value_t[-self.count :], strict=True)
        return [(full_precision(s.tensor), full_precision(t.tensor.detach())) for s, t in deepest]
