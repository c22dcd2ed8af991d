"""Which maps and decoder levels of the teacher the student's are compared with, where the two models have others."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import torch

from mokd_det.distillation.rows import describe
from mokd_det.distillation.taps import Specs, Taps, TapValue
from mokd_det.errors import IncompatibleModelsError
from mokd_det.layers import TapSpec

__all__ = ["CommonTaps", "TapPairing", "teacher_levels"]

TapPairing: TypeAlias = Literal["equal", "common"]
"""Strides and decoder depths: "equal" in both models, or what they have in "common" (:class:`CommonTaps`)."""


def teacher_levels(student: int, teacher: int) -> list[int]:
    """The teacher's decoder level for each of the student's: the one of the same relative depth, or the next deeper.

    Level i of L_s is compared with level ⌈(i + 1) · L_t / L_s⌉ − 1 of L_t: the last with the last, equal depths level
    by level, and seven levels whose first is a decoder's input (a ViDT's) with six layers layer by layer.
    """
    return [-(-(level + 1) * teacher // student) - 1 for level in range(student)]


class CommonTaps:
    """Reduces the taps of both models to maps of strides that both have, and the teacher's levels to the student's.

    Names that the teacher lacks stay as they are.

    Raises:
        IncompatibleModelsError: maps without a common stride; the message has both shapes.
    """

    def __init__(self, student: Specs, teacher: Specs) -> None:
        self.student, self.teacher = dict(student), dict(teacher)
        self._strides: dict[str, tuple[int, ...]] = {}
        self._levels: dict[str, list[int]] = {}
        for name in student.keys() & teacher.keys():
            spec_s, spec_t = student[name], teacher[name]
            if spec_s.kind == spec_t.kind == "maps":
                common = tuple(stride for stride in spec_s.strides if stride in spec_t.strides)
                if not common:
                    raise IncompatibleModelsError(
                        f"tap {name!r}: student {describe(spec_s)}, teacher {describe(spec_t)}; they have no stride in "
                        f"common"
                    )
                self._strides[name] = common
                self.student[name], self.teacher[name] = _with(spec_s, common), _with(spec_t, common)
            elif spec_s.kind == spec_t.kind == "tokens" and spec_s.num_levels != spec_t.num_levels:
                self._levels[name] = teacher_levels(spec_s.num_levels, spec_t.num_levels)
                self.teacher[name] = dataclasses.replace(spec_t, num_levels=spec_s.num_levels)

    def of_student(self, taps: Taps) -> dict[str, TapValue]:
        """The student's values, reduced."""
        return {name: self._maps(name, value) for name, value in taps.items()}

    def of_teacher(self, taps: Taps) -> dict[str, TapValue]:
        """The teacher's values, reduced; its levels in the order of the student's."""
        paired = self.of_student(taps)
        for name, levels in self._levels.items():
            value = paired.get(name)
            if isinstance(value, torch.Tensor):
                stack = value if value.ndim == 4 else value[None]
                paired[name] = stack[levels] if len(levels) > 1 else stack[-1]
        return paired

    def _maps(self, name: str, value: TapValue) -> TapValue:
        if name not in self._strides or not isinstance(value, list):
            return value
        return [level for level in value if level.stride in self._strides[name]]


def _with(spec: TapSpec, strides: tuple[int, ...]) -> TapSpec:
    channels = dict(zip(spec.strides, spec.channels, strict=True))
    return dataclasses.replace(spec, channels=tuple(channels[stride] for stride in strides), strides=strides)
