"""Multi-objective knowledge distillation (MoKD) for detection and classification on Detectron2."""

from mokd_det.display_backend import replace_missing_backend

__version__ = "0.1.0"

replace_missing_backend()
