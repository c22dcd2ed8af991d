"""Weights in and out: published ViDT, Swin and timm files into our models, plain students out."""

from .conversion import export_student, official_weights, student_weights, write_file
from .identity import Identity, identify
from .loading import KEEP_ROWS, ON_CLASS_MISMATCH, LoadReport, load_into, load_state
from .reading import load_file

__all__ = [
    "KEEP_ROWS",
    "ON_CLASS_MISMATCH",
    "Identity",
    "LoadReport",
    "export_student",
    "identify",
    "load_file",
    "load_into",
    "load_state",
    "official_weights",
    "student_weights",
    "write_file",
]
