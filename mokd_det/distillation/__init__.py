"""Distillation: taps, projections, methods, and the meta-architecture that joins student and teacher."""

from mokd_det.distillation import methods
from mokd_det.distillation.distiller import DEFAULT_TAPS, DistillationBatch, Distiller
from mokd_det.distillation.methods import *  # noqa: F403  (what its __all__ names)
from mokd_det.distillation.query_matching import HungarianTokenMatching
from mokd_det.distillation.stiefel import StiefelLinear
from mokd_det.distillation.subspace import SubspaceHead, common_dimension
from mokd_det.distillation.taps import TapRecorder, TapSource, TapValue, tap_specs
from mokd_det.distillation.teacher_cache import TeacherCache
from mokd_det.distillation.unlabeled import UnlabeledDistiller

__all__ = [
    "DEFAULT_TAPS",
    "DistillationBatch",
    "Distiller",
    "HungarianTokenMatching",
    "StiefelLinear",
    "SubspaceHead",
    "TapRecorder",
    "TapSource",
    "TapValue",
    "TeacherCache",
    "UnlabeledDistiller",
    "common_dimension",
    "tap_specs",
]
__all__ += methods.__all__
