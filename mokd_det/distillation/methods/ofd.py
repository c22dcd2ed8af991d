"""Overhaul of feature distillation (Heo et al., ICCV 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.stage_pairs import StagePairs
from mokd_det.distillation.taps import Specs, Taps, find_module
from mokd_det.errors import IncompatibleModelsError

__all__ = ["OFD", "negative_margin"]


def negative_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean of a BatchNorm's negative outputs, per channel (C,): E[x | x < 0] of x ~ N(bias, weight²).

    With w = |weight|: bias − w φ(bias/w) / Φ(−bias/w); −3 w where x < 0 is rarer than 1 in 1000. Rounded to float32
    as in the published code.
    """
    w, b = weight.detach().double().abs(), bias.detach().double()
    ratio = b / w
    below = torch.special.ndtr(-ratio)
    density = (-0.5 * ratio.square()).exp() / math.sqrt(2 * math.pi)
    margin = torch.where(below > 1e-3, b - w * density / below.clamp_min(1e-3), -3 * w)
    return margin.float()


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let every BatchNorm of ``model`` use the batch's mean and variance; its running statistics stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    modes = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, (training, tracks) in zip(norms, modes, strict=True):
            norm.training, norm.track_running_stats = training, tracks


class OFD(Method):
    """Partial squares of connector(student's map) − max(teacher's map, margin), before the last ReLU of each stage.

        ofd = Σ_stages 2^(i−k) · mean over images of Σ (z − t')²  where z > t' or t > 0

    z = BN(1 × 1 convolution of the student's map); t the teacher's map, averaged down to the student's size; t' =
    max(t, m) with m the mean of the teacher's negative responses per channel (:func:`negative_margin`); the deepest of
    the k stages has weight 1. Published weight 0.001. Stages are paired from the deepest one.

    Args:
        norms: module paths of the teacher's BatchNorms that feed those ReLUs, shallow to deep, as many as the tap
            "pre" has maps. None: the teacher tells by ``pre_activation_norms()``, as the CIFAR networks do.
        batch_statistics_teacher: the teacher normalises by the batch, as in the published code, which leaves it in
            training mode; its running statistics stay untouched here.
    """

    tap_kinds = {"pre": "maps"}

    def __init__(self, norms: Sequence[str] | None = None, batch_statistics_teacher: bool = False) -> None:
        super().__init__()
        self.norms = None if norms is None else tuple(norms)
        self.batch_statistics_teacher = batch_statistics_teacher
        self.teacher_sees_batch = batch_statistics_teacher
        self.connectors = nn.ModuleList()
        self._margins: list[Tensor] = []
        self._stages: StagePairs | None = None

    def inspect(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Take the margins from the teacher's BatchNorms; an IncompatibleModelsError if it has none to name."""
        self._margins = [negative_margin(norm.weight, norm.bias) for norm in self._find_norms(teacher)]

    def _find_norms(self, teacher: nn.Module | None) -> list[Any]:
        assert teacher is not None  # the Distiller refuses a method that needs one without
        if self.norms is not None:
            found = [find_module(teacher, path)[1] for path in self.norms]
        else:
            models = teacher, getattr(teacher, "network", None)
            offers = (getattr(model, "pre_activation_norms", None) for model in models)
            offer = next((call for call in offers if call is not None), None)
            if offer is None:
                raise IncompatibleModelsError(
                    f"OFD: the teacher ({type(teacher).__name__}) does not say which BatchNorms feed its last ReLUs; "
                    f"give their module paths, OFD(norms=[...])"
                )
            found = list(offer())
        for norm in found:
            if not isinstance(norm, nn.BatchNorm2d) or not norm.affine:
                raise IncompatibleModelsError(
                    f"OFD: the margins come from a BatchNorm2d's weight and bias, but the teacher has {norm}"
                )
        return found

    def check(self, student: Specs, teacher: Specs) -> None:
        super().check(student, teacher)
        found, expected = [len(margin) for margin in self._margins], list(teacher["pre"].channels)
        if found != expected:
            raise IncompatibleModelsError(
                f"OFD: the teacher's maps at the tap 'pre' have {expected} channels, its BatchNorms {found}; "
                f"there must be one for each map"
            )
        for stride_s, stride_t in StagePairs("pre", student, teacher).strides:
            if stride_s < stride_t:
                raise IncompatibleModelsError(
                    f"OFD averages the teacher's maps down to the student's size, but at one stage the student has "
                    f"stride {stride_s} and the teacher {stride_t}"
                )

    def build_for(self, student: Specs, teacher: Specs) -> None:
        self._stages = StagePairs("pre", student, teacher)
        for index, (n_s, n_t) in enumerate(self._stages.channels):
            convolution = nn.Conv2d(n_s, n_t, 1, bias=False)
            nn.init.normal_(convolution.weight, std=math.sqrt(2 / n_t))
            self.connectors.append(nn.Sequential(convolution, nn.BatchNorm2d(n_t)))
            margin = self._margins[index - self._stages.count]
            # The teacher has them: no need to keep them in checkpoints.
            self.register_buffer(f"margin{index}", margin.view(1, -1, 1, 1), persistent=False)

    def teacher_pass(self, teacher: nn.Module, student: Taps) -> AbstractContextManager[None]:
        return batch_statistics(teacher) if self.batch_statistics_teacher else nullcontext()

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        assert self._stages is not None  # built by setup
        total = []
        for index, (map_s, map_t) in enumerate(self._stages(student, teacher)):
            adapted = self.connectors[index](map_s)
            target = F.adaptive_avg_pool2d(map_t, adapted.shape[-2:])
            bounded = target.maximum(self.get_buffer(f"margin{index}"))
            matters = (adapted > bounded) | (target > 0)
            squares = torch.where(matters, (adapted - bounded).square(), 0.0)
            total.append(squares.sum() / (len(map_s) * 2 ** (self._stages.count - 1 - index)))
        return {"ofd": torch.stack(total).sum()}
