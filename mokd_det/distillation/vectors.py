"""Values of taps as whole tensors, where a method compares no rows; all in float32 at least."""

from __future__ import annotations

from torch import Tensor

from mokd_det.distillation.precision import full_precision
from mokd_det.distillation.taps import Taps, TapValue
from mokd_det.errors import IncompatibleModelsError

__all__ = ["image_vectors", "token_stack", "tokens", "vector_pair"]


def vector_pair(name: str, student: Taps, teacher: Taps) -> tuple[Tensor, Tensor]:
    """The vectors (B, C_s) and (B, C_t) of a tap; no gradient reaches the teacher's.

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


def tokens(value: TapValue) -> Tensor:
    """A value that is no maps, as it is."""
    assert isinstance(value, Tensor)  # the taps' kind is checked by setup
    return full_precision(value)


def token_stack(value: TapValue) -> Tensor:
    """Tokens with their levels, (L, B, N, C); of a tap without a stack L is 1."""
    assert isinstance(value, Tensor)  # the taps' kind is checked by setup
    return full_precision(value if value.ndim == 4 else value[None])


def image_vectors(value: TapValue) -> Tensor:
    """One vector per image of any tap, (B, C): as it is, of tokens the first (CLS), the mean of the last map."""
    if isinstance(value, list):
        return full_precision(value[-1].tensor.mean((2, 3)))
    return full_precision(value[:, 0] if value.ndim == 3 else value)
