"""Distillation: taps, projections, methods, and the meta-architecture that joins student and teacher."""

from mokd_det.distillation.distiller import DEFAULT_TAPS, DistillationBatch, Distiller
from mokd_det.distillation.methods import (
    Method,
    MoKD,
    NoDistillation,
    ProjectorMatching,
    TokenMatching,
    VkD,
)
from mokd_det.distillation.stiefel import StiefelLinear
from mokd_det.distillation.subspace import SubspaceHead, common_dimension
from mokd_det.distillation.taps import TapRecorder, TapSource, TapValue, tap_specs
from mokd_det.distillation.token_matching import HungarianTokenMatching

__all__ = [
    "DEFAULT_TAPS",
    "DistillationBatch",
    "Distiller",
    "HungarianTokenMatching",
    "Method",
    "MoKD",
    "NoDistillation",
    "ProjectorMatching",
    "StiefelLinear",
    "SubspaceHead",
    "TapRecorder",
    "TapSource",
    "TapValue",
    "TokenMatching",
    "VkD",
    "common_dimension",
    "tap_specs",
]
