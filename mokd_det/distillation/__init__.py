"""Distillation: taps, projections, methods, and the meta-architecture that joins student and teacher."""

from mokd_det.distillation.distiller import DEFAULT_TAPS, DistillationBatch, Distiller
from mokd_det.distillation.methods import (
    CRD,
    DKD,
    NKD,
    OFD,
    PKT,
    RKD,
    SRD,
    USKD,
    Combined,
    FitNet,
    HardDistillation,
    LogitDistillation,
    Manifold,
    MaskedKD,
    Method,
    MoKD,
    NoDistillation,
    NormDirection,
    ProjectorMatching,
    ReviewKD,
    TokenMatching,
    VkD,
)
from mokd_det.distillation.stiefel import StiefelLinear
from mokd_det.distillation.subspace import SubspaceHead, common_dimension
from mokd_det.distillation.taps import TapRecorder, TapSource, TapValue, tap_specs
from mokd_det.distillation.teacher_cache import TeacherCache
from mokd_det.distillation.token_matching import HungarianTokenMatching

__all__ = [
    "CRD",
    "Combined",
    "DEFAULT_TAPS",
    "DKD",
    "DistillationBatch",
    "Distiller",
    "FitNet",
    "HardDistillation",
    "HungarianTokenMatching",
    "LogitDistillation",
    "Manifold",
    "MaskedKD",
    "Method",
    "MoKD",
    "NKD",
    "NoDistillation",
    "NormDirection",
    "OFD",
    "PKT",
    "ProjectorMatching",
    "RKD",
    "ReviewKD",
    "SRD",
    "StiefelLinear",
    "SubspaceHead",
    "TapRecorder",
    "TapSource",
    "TapValue",
    "TeacherCache",
    "TokenMatching",
    "USKD",
    "VkD",
    "common_dimension",
    "tap_specs",
]
