"""Manifold distillation of vision transformers (Hao et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.precision import full_precision
from mokd_det.distillation.taps import Specs, Taps
from mokd_det.errors import ConfigError, IncompatibleModelsError

__all__ = ["Manifold", "relation_distance"]


class Manifold(Method):
    """Mean squared differences of the cosines between patch tokens, averaged over pairs of layers.

    ``patch``: between the patches of an image; ``sample``: between the images, patch position by patch position;
    ``random``: between tokens drawn from the whole batch, the same for both models. Published weights 4, 0.1 and 0.2
    beside a soft distillation with weight 1. Widths may differ, the numbers of patches may not.

    Args:
        student_layers: blocks of the student, of the tap's stack; None: all, or the only one of a tap without stack.
            Published for DeiT: 0 to 3 and 8 to 11.
        teacher_layers: the teacher's, one for each. Published for CaiT-S24: 0 to 3 and 20 to 23.
        num_random: tokens drawn for ``random``; at most the batch has.
        teacher_prefix: leading tokens of the teacher that are no patches; the student's follow from its number.
    """

    tap_kinds = {"tokens": "tokens"}

    def __init__(
        self,
        student_layers: Sequence[int] | None = None,
        teacher_layers: Sequence[int] | None = None,
        *,
        num_random: int = 192,
        teacher_prefix: int = 0,
    ) -> None:
        super().__init__()
        if num_random < 1 or teacher_prefix < 0:
            raise ConfigError(
                f"Manifold: num_random={num_random} must be at least 1, teacher_prefix={teacher_prefix} at least 0"
            )
        self.layers = (
            None if student_layers is None else tuple(student_layers),
            None if teacher_layers is None else tuple(teacher_layers),
        )
        self.num_random = num_random
        self.teacher_prefix = teacher_prefix

    def check(self, student: Specs, teacher: Specs) -> None:
        super().check(student, teacher)
        chosen = []
        for who, specs, layers in zip(("student", "teacher"), (student, teacher), self.layers, strict=True):
            count = specs["tokens"].num_levels
            for layer in layers or ():
                if not -count <= layer < count:
                    raise ConfigError(f"Manifold: layer {layer} of the {who} does not exist; it has {count}")
            chosen.append(count if layers is None else len(layers))
        if chosen[0] != chosen[1]:
            raise ConfigError(
                f"Manifold compares layer by layer, but {chosen[0]} of the student are chosen and {chosen[1]} of the "
                f"teacher"
            )
        count_s, count_t = student["tokens"].num_tokens, teacher["tokens"].num_tokens
        if count_s is not None and count_t is not None and count_s < count_t - self.teacher_prefix:
            raise IncompatibleModelsError(
                f"Manifold needs equal numbers of patches, but the student has {count_s} tokens and the teacher "
                f"{count_t} with {self.teacher_prefix} that are no patches"
            )

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        stack_s, stack_t = _stack(student, self.layers[0]), _stack(teacher, self.layers[1])
        stack_t = stack_t[:, :, self.teacher_prefix :].detach()
        surplus = stack_s.shape[2] - stack_t.shape[2]
        if surplus < 0:
            raise IncompatibleModelsError(
                f"Manifold: {stack_s.shape[2]} tokens in the student, but {stack_t.shape[2]} patches in the teacher"
            )
        z_s, z_t = F.normalize(stack_s[:, :, surplus:], dim=-1), F.normalize(stack_t, dim=-1)
        flat_s, flat_t = z_s.flatten(1, 2), z_t.flatten(1, 2)  # (L, B·N, C)
        drawn = [
            torch.randperm(flat_s.shape[1], device=flat_s.device)[: self.num_random]
            for _ in range(len(flat_s))
        ]
        random = [relation_distance(s[i], t[i]) for s, t, i in zip(flat_s, flat_t, drawn, strict=True)]
        return {
            "patch": relation_distance(z_s, z_t),
            "sample": relation_distance(z_s.transpose(1, 2), z_t.transpose(1, 2)),
            "random": torch.stack(random).mean(),
        }


def _stack(taps: Taps, layers: tuple[int, ...] | None) -> Tensor:
    """The chosen layers, (L, B, N, C)."""
    value = taps["tokens"]
    assert isinstance(value, Tensor)  # the tap's kind is checked by setup
    stack = value if value.ndim == 4 else value[None]
    return full_precision(stack if layers is None else stack[list(layers)])


def relation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines among the R unit rows of (…, R, C_s) and of (…, R, C_t)."""
    return (teacher @ teacher.transpose(-1, -2) - student @ student.transpose(-1, -2)).square().mean()
