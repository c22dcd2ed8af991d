"""Backbones that carry DET tokens along with the image."""

from .base import DET_BACKBONES, DetBackbone, DetFeatures, register_backbone, resize_mask
from .swin_ram import SwinRAM, swin_base, swin_nano, swin_small, swin_tiny
from .timm_ram import TimmRAM

__all__ = [
    "DET_BACKBONES",
    "DetBackbone",
    "DetFeatures",
    "SwinRAM",
    "TimmRAM",
    "register_backbone",
    "resize_mask",
    "swin_base",
    "swin_nano",
    "swin_small",
    "swin_tiny",
]
