"""Multi-objective knowledge distillation (MoKD) for detection and classification on Detectron2."""

__version__ = "0.1.0"
