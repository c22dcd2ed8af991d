"""Distillation methods, one per file, behind the contract of :class:`Method`."""

from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.methods.mokd import MoKD
from mokd_det.distillation.methods.none import NoDistillation
from mokd_det.distillation.methods.projector_matching import ProjectorMatching
from mokd_det.distillation.methods.token_matching import TokenMatching
from mokd_det.distillation.methods.vkd import VkD

__all__ = ["Method", "MoKD", "NoDistillation", "ProjectorMatching", "TokenMatching", "VkD"]
