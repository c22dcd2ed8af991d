"""Building blocks without a notion of detection, of a teacher or of training."""

from .boxes import box_iou, cxcywh_to_xyxy, generalized_iou, inverse_sigmoid, xyxy_to_cxcywh
from .deformable_attention import MultiScaleDeformableAttention
from .det_attention import attend_det_tokens, det_attention_weights
from .fused_kernel import fused_kernel
from .gather_kernel import gather_kernel
from .kernel_choice import choose_kernel
from .kernel_registry import KERNELS, register_kernel
from .mlp import MLP
from .position_encoding import masked_sine_encoding
from .reconfigured_attention import ReconfiguredAttention
from .tap_point import FeatureMap, TapPoint, TapSpec

__all__ = [
    "KERNELS",
    "MLP",
    "FeatureMap",
    "MultiScaleDeformableAttention",
    "ReconfiguredAttention",
    "TapPoint",
    "TapSpec",
    "attend_det_tokens",
    "box_iou",
    "choose_kernel",
    "cxcywh_to_xyxy",
    "det_attention_weights",
    "fused_kernel",
    "gather_kernel",
    "generalized_iou",
    "inverse_sigmoid",
    "masked_sine_encoding",
    "register_kernel",
    "xyxy_to_cxcywh",
]
