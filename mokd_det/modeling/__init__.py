"""Detectors: backbones with DET tokens, neck, decoder, heads, criterion and the ViDT meta-architecture."""

from .criterion import SetCriterion
from .decoder import DeformableTransformer
from .dense_head import DenseHead
from .feature_teacher import FeatureTeacher, SeveralTeachers
from .matcher import HungarianMatcher
from .neck import EPFF, InputProjection
from .postprocess import top_predictions
from .query_decoder import Queries, QueryDecoder
from .timm_model import create_timm_model
from .torchvision_detector import TorchvisionDetector
from .transformers_detector import TransformersDetector
from .vidt import ViDT

__all__ = [
    "EPFF",
    "DeformableTransformer",
    "DenseHead",
    "FeatureTeacher",
    "HungarianMatcher",
    "InputProjection",
    "Queries",
    "QueryDecoder",
    "SetCriterion",
    "SeveralTeachers",
    "TorchvisionDetector",
    "TransformersDetector",
    "ViDT",
    "create_timm_model",
    "top_predictions",
]
