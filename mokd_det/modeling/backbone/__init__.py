"""Backbones that carry DET tokens along with the image."""

from .base import DET_BACKBONES, DetBackbone, DetFeatures, register_backbone
from .swin_ram import SwinRAM, swin_base, swin_nano, swin_small, swin_tiny

__all__ = [
    "DET_BACKBONES",
    "DetBackbone",
    "DetFeatures",
    "SwinRAM",
    "register_backbone",
    "swin_base",
    "swin_nano",
    "swin_small",
    "swin_tiny",
]
