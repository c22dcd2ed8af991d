"""Balancing of two or more objectives: from named losses and parameters to one gradient.

This room knows nothing of images, detectors or distillation; it serves any model that returns a dict of losses.
"""

from .amortized import Amortized
from .amortized_values import AmortizedValues
from .base import Balancer, Forward, StepContext
from .closed_form import ClosedForm
from .closed_form_taps import ClosedFormTaps
from .dot import DOT
from .fixed import FixedWeights
from .gradient_share import GradientShare
from .gradnorm import GradNorm
from .min_norm import min_norm_weights
from .objectives import Objectives
from .recorded_weights import MeanOf, Replay
from .sum_norm import SumNorm
from .torchjd_adapter import TORCHJD_METHODS, TorchJD
from .uncertainty import UncertaintyWeighting

__all__ = [
    "TORCHJD_METHODS",
    "Amortized",
    "AmortizedValues",
    "Balancer",
    "ClosedForm",
    "ClosedFormTaps",
    "DOT",
    "FixedWeights",
    "Forward",
    "GradNorm",
    "GradientShare",
    "MeanOf",
    "Objectives",
    "Replay",
    "StepContext",
    "SumNorm",
    "TorchJD",
    "UncertaintyWeighting",
    "min_norm_weights",
]
