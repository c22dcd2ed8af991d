"""Distillation methods, one per file, behind the contract of :class:`Method`."""

from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.methods.combined import Combined
from mokd_det.distillation.methods.crd import CRD
from mokd_det.distillation.methods.cross_kd import CrossKD
from mokd_det.distillation.methods.detr_distill import DETRDistill
from mokd_det.distillation.methods.dkd import DKD
from mokd_det.distillation.methods.fgd import FGD
from mokd_det.distillation.methods.fitnet import FitNet
from mokd_det.distillation.methods.foundation_features import FoundationFeatures
from mokd_det.distillation.methods.kd_detr import KDDETR
from mokd_det.distillation.methods.ld import LD
from mokd_det.distillation.methods.logit import HardDistillation, LogitDistillation
from mokd_det.distillation.methods.manifold import Manifold
from mokd_det.distillation.methods.masked_kd import MaskedKD
from mokd_det.distillation.methods.mgd import MGD
from mokd_det.distillation.methods.mokd import MoKD
from mokd_det.distillation.methods.nkd import NKD
from mokd_det.distillation.methods.none import NoDistillation
from mokd_det.distillation.methods.norm_direction import NormDirection
from mokd_det.distillation.methods.ofd import OFD
from mokd_det.distillation.methods.pkd import PKD
from mokd_det.distillation.methods.pkt import PKT
from mokd_det.distillation.methods.projector_matching import ProjectorMatching
from mokd_det.distillation.methods.review_kd import ReviewKD
from mokd_det.distillation.methods.rkd import RKD
from mokd_det.distillation.methods.srd import SRD
from mokd_det.distillation.methods.token_matching import TokenMatching
from mokd_det.distillation.methods.uskd import USKD
from mokd_det.distillation.methods.vkd import VkD

__all__ = [
    "CRD",
    "Combined",
    "DKD",
    "CrossKD",
    "DETRDistill",
    "KDDETR",
    "LD",
    "FGD",
    "FitNet",
    "FoundationFeatures",
    "HardDistillation",
    "LogitDistillation",
    "MGD",
    "Manifold",
    "MaskedKD",
    "Method",
    "MoKD",
    "NKD",
    "NoDistillation",
    "NormDirection",
    "OFD",
    "PKD",
    "PKT",
    "ProjectorMatching",
    "RKD",
    "ReviewKD",
    "SRD",
    "TokenMatching",
    "USKD",
    "VkD",
]
