"""Trained students in the forms that other programs run: ONNX and TorchScript graphs, checked against the model."""

from mokd_det.export.agreement import (
    Agreement,
    Detections,
    Runner,
    compare_detections,
    measure_agreement,
    onnx_runner,
    pad_batch,
    photographs,
    torchscript_runner,
)
from mokd_det.export.description import describe, plain_config
from mokd_det.export.files import DEFAULT_OPSET, DESCRIPTION_FILE, OPSETS, onnx_bytes, torchscript_bytes
from mokd_det.export.graph import (
    CHECK_SIZES,
    INPUTS,
    OUTPUTS,
    DetectorGraph,
    TensorSpec,
    TransformersGraph,
    inference_graph,
)

__all__ = [
    "CHECK_SIZES",
    "DEFAULT_OPSET",
    "DESCRIPTION_FILE",
    "INPUTS",
    "OPSETS",
    "OUTPUTS",
    "Agreement",
    "Detections",
    "DetectorGraph",
    "Runner",
    "TensorSpec",
    "TransformersGraph",
    "compare_detections",
    "describe",
    "inference_graph",
    "measure_agreement",
    "onnx_bytes",
    "onnx_runner",
    "pad_batch",
    "photographs",
    "plain_config",
    "torchscript_bytes",
    "torchscript_runner",
]
