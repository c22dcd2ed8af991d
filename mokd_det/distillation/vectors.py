"""Vectors of student and teacher, one per image, as methods compare them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mokd_det.distillation.precision import full_precision
from mokd_det.distillation.taps import TapValue
from mokd_det.errors import IncompatibleModelsError

__all__ = ["image_vectors", "vector_pair"]


def vector_pair(
    name: str, student: Mapping[str, TapValue], teacher: Mapping[str, TapValue]
) -> tuple[Tensor, Tensor]:
    """The vectors (B, C_s) and (B, C_t) of a tap, in float32 at least; no gradient reaches the teacher's.

    Raises:
        IncompatibleModelsError: values that are no vectors, or of different batches.
    """
    value_s, value_t = student[name], teacher[name]
    if isinstance(value_s, list) or isinstance(value_t, list) or len(value_s) != len(value_t):
        shapes = ["maps" if isinstance(v, list) else str(tuple(v.shape)) for v in (value_s, value_t)]
        raise IncompatibleModelsError(
            f"tap {name!r}: {shapes[0]} in the student and {shapes[1]} in the teacher; both need one vector per image"
        )
    return full_precision(value_s), full_precision(value_t.detach())


def image_vectors(value: TapValue) -> Tensor:
    """One vector per image of any tap: vectors as they are, the first of the tokens (CLS), or the mean of the last map.

    Args:
        value: (B, C), (B, N, C) or maps.

    Returns:
        (B, C), in float32 at least.
    """
    if isinstance(value, list):
        return full_precision(value[-1].tensor.mean((2, 3)))
    return full_precision(value[:, 0] if value.ndim == 3 else value)
