"""Stages of two networks, paired from the deepest one up: for methods whose maps differ in stride."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mokd_det.distillation.precision import full_precision
from mokd_det.distillation.taps import TapValue
from mokd_det.errors import IncompatibleModelsError
from mokd_det.layers.tap_point import TapSpec

__all__ = ["StagePairs"]


class StagePairs:
    """The deepest k maps of both models, shallow to deep; k is the smaller number of maps.

    The CIFAR networks deliver their stem's map too where they deliver activations, and not where they deliver
    pre-activations: counted from the deepest, stage meets stage.

    Args:
        name: of the tap.
        student: the student's taps.
        teacher: the teacher's.
    """

    def __init__(self, name: str, student: Mapping[str, TapSpec], teacher: Mapping[str, TapSpec]) -> None:
        self.name = name
        self.count = min(len(student[name].channels), len(teacher[name].channels))
        self.channels = list(
            zip(*(specs[name].channels[-self.count :] for specs in (student, teacher)), strict=True)
        )
        self.strides = list(
            zip(*(specs[name].strides[-self.count :] for specs in (student, teacher)), strict=True)
        )

    def __call__(
        self, student: Mapping[str, TapValue], teacher: Mapping[str, TapValue]
    ) -> list[tuple[Tensor, Tensor]]:
        """The maps (B, C_s, H_s, W_s) and (B, C_t, H_t, W_t) of each stage; no gradient reaches the teacher's.

        Raises:
            IncompatibleModelsError: values that are no maps, or fewer than described.
        """
        value_s, value_t = student[self.name], teacher[self.name]
        if not isinstance(value_s, list) or not isinstance(value_t, list):
            raise IncompatibleModelsError(f"tap {self.name!r}: both models must deliver maps")
        deepest = zip(value_s[-self.count :], value_t[-self.count :], strict=True)
        return [(full_precision(s.tensor), full_precision(t.tensor.detach())) for s, t in deepest]
