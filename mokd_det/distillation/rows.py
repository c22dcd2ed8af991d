"""Tap values of student and teacher as pairs of rows: the form in which every method compares them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mokd_det.distillation.precision import full_precision
from mokd_det.distillation.taps import TapValue
from mokd_det.errors import IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap, TapSpec

__all__ = [
    "MapPair",
    "RowPair",
    "check_comparable",
    "describe",
    "pair_maps",
    "pair_rows",
    "row_channels",
]


@dataclass(frozen=True)
class RowPair:
    """Rows to be compared, row i of the student with row i of the teacher.

    Attributes:
        key: names the tap and level, "patch_stride8" or "neck"; what is learned for it is stored under this name.
        student: (R, C_s).
        teacher: (R, C_t), detached.
        weights: (R,), 0 for padding and else 1; None: all 1.
        num_levels: how many token sets of equal size the rows stack (the decoder levels); 1 for maps.
    """

    key: str
    student: Tensor
    teacher: Tensor
    weights: Tensor | None
    num_levels: int = 1


@dataclass(frozen=True)
class MapPair:
    """Maps of one level to be compared, cell by cell.

    Attributes:
        key: names the tap and level, "patch_stride8".
        stride: pixels of the input per cell.
        student: (B, C_s, H, W).
        teacher: (B, C_t, H, W), detached.
        padding: (B, H, W) bool, True where the level shows padding; None: nowhere.
    """

    key: str
    stride: int
    student: Tensor
    teacher: Tensor
    padding: Tensor | None

    @property
    def valid(self) -> Tensor:
        """(B, H, W), 1 on the image and 0 on padding, in the maps' type."""
        if self.padding is None:
            return torch.ones_like(self.teacher[:, 0])
        return (~self.padding).to(self.teacher.dtype)


def _map_key(name: str, stride: int) -> str:
    return f"{name}_stride{stride}"


def row_channels(name: str, student: TapSpec, teacher: TapSpec) -> dict[str, tuple[int, int]]:
    """The row pairs that a tap will give: key → (channels of the student, channels of the teacher)."""
    if student.kind != "maps":
        return {name: (student.channels[0], teacher.channels[0])}
    teacher_channels = dict(zip(teacher.strides, teacher.channels, strict=True))
    return {
        _map_key(name, stride): (channels, teacher_channels[stride])
        for stride, channels in zip(student.strides, student.channels, strict=True)
    }


def check_comparable(name: str, student: TapSpec, teacher: TapSpec, same_channels: bool = False) -> None:
    """Refuse two taps that cannot be compared row by row, or as they are (``same_channels``), without a projection.

    Raises:
        IncompatibleModelsError: different kinds, strides, numbers of tokens or of token sets (or of channels).
    """
    both = f"tap {name!r}: student {describe(student)}, teacher {describe(teacher)}"
    if student.kind != teacher.kind:
        raise IncompatibleModelsError(f"{both}; both must deliver maps, or both tokens, or both vectors")
    if student.kind == "maps":
        for who, spec in (("student", student), ("teacher", teacher)):
            if len(set(spec.strides)) != len(spec.strides):
                raise IncompatibleModelsError(
                    f"{both}; maps are matched by stride, but the {who} has one twice"
                )
        if set(student.strides) != set(teacher.strides):
            raise IncompatibleModelsError(
                f"{both}; maps are matched by stride, so both need the same strides"
            )
    elif student.num_tokens != teacher.num_tokens and None not in (student.num_tokens, teacher.num_tokens):
        raise IncompatibleModelsError(
            f"{both}; query i is matched with query i, so both need the same number of tokens"
        )
    elif student.num_levels != teacher.num_levels:
        raise IncompatibleModelsError(f"{both}; both need the same number of decoder levels")
    if same_channels:
        for key, (n_s, n_t) in row_channels(name, student, teacher).items():
            if n_s != n_t:
                raise IncompatibleModelsError(f"{both}; without a projection {key!r} needs equal channels")


def describe(spec: TapSpec) -> str:
    """The shapes that a tap delivers, for messages."""
    if spec.kind == "maps":
        return "maps " + ", ".join(
            f"(B, {c}, H/{s}, W/{s})" for c, s in zip(spec.channels, spec.strides, strict=True)
        )
    if spec.kind == "vectors":
        return f"vectors (B, {spec.channels[0]})"
    count = "N" if spec.num_tokens is None else spec.num_tokens
    stack = "" if spec.num_levels == 1 else f"{spec.num_levels}, "
    return f"tokens ({stack}B, {count}, {spec.channels[0]})"


def pair_rows(name: str, student: TapValue, teacher: TapValue, mask_padding: bool = True) -> list[RowPair]:
    """The row pairs of one tap, in float32 at least.

    Args:
        name: of the tap.
        student: value of the student's tap; the order of its maps decides the order of the pairs.
        teacher: value of the teacher's tap; its maps are found by stride. It is detached.
        mask_padding: give weight 0 to cells that are padding for the student or for the teacher.

    Raises:
        IncompatibleModelsError: sizes that differ in this batch.
    """
    if isinstance(student, list) and isinstance(teacher, list):
        return [_rows_of_maps(pair) for pair in pair_maps(name, student, teacher, mask_padding)]
    if isinstance(student, list) or isinstance(teacher, list):
        raise IncompatibleModelsError(f"tap {name!r}: one model delivers maps and the other does not")
    if student.shape[:-1] != teacher.shape[:-1]:
        raise IncompatibleModelsError(
            f"tap {name!r}: values of shape {tuple(student.shape)} in the student and {tuple(teacher.shape)} "
            f"in the teacher; row i is compared with row i, so all but the channels must agree"
        )
    rows_s = full_precision(student.reshape(-1, student.shape[-1]))
    rows_t = full_precision(teacher.detach().reshape(-1, teacher.shape[-1]))
    return [RowPair(name, rows_s, rows_t, None, student.shape[0] if student.ndim == 4 else 1)]


def pair_maps(name: str, student: TapValue, teacher: TapValue, mask_padding: bool = True) -> list[MapPair]:
    """The maps of one tap, level by level, in float32 at least; arguments and errors as for :func:`pair_rows`."""
    if not isinstance(student, list) or not isinstance(teacher, list):
        raise IncompatibleModelsError(f"tap {name!r}: both models must deliver maps")
    by_stride = {level.stride: level for level in teacher}
    return [_pair_maps(name, level, by_stride[level.stride], mask_padding) for level in student]


def _pair_maps(name: str, student: FeatureMap, teacher: FeatureMap, mask_padding: bool) -> MapPair:
    shape_s, shape_t = student.tensor.shape, teacher.tensor.shape
    if (shape_s[0], *shape_s[2:]) != (shape_t[0], *shape_t[2:]):
        raise IncompatibleModelsError(
            f"tap {name!r}, stride {student.stride}: map of shape {tuple(shape_s)} in the student and "
            f"{tuple(shape_t)} in the teacher; batch, height and width must agree (do "
            f"both models pad the batch alike?)"
        )
    masks = [m for m in (student.padding_mask, teacher.padding_mask) if m is not None] if mask_padding else []
    padding = None if not masks else masks[0] if len(masks) == 1 else masks[0] | masks[1]
    return MapPair(
        _map_key(name, student.stride),
        student.stride,
        full_precision(student.tensor),
        full_precision(teacher.tensor.detach()),
        padding,
    )


def _rows_of_maps(pair: MapPair) -> RowPair:
    rows_s, rows_t = _map_rows(pair.student), _map_rows(pair.teacher)
    weights = None if pair.padding is None else (~pair.padding).reshape(-1).to(rows_s.dtype)
    return RowPair(pair.key, rows_s, rows_t, weights)


def _map_rows(tensor: Tensor) -> Tensor:
    # (B, C, H, W) → (B·H·W, C)
    return tensor.permute(0, 2, 3, 1).reshape(-1, tensor.shape[1])
