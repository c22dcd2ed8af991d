"""ONNX: a graph in standard operators, with free batch and image size."""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping

import torch

from mokd_det.errors import ExportError, first_line
from mokd_det.export.graph import INPUTS, OUTPUTS, DetectorGraph, TransformersGraph
from mokd_det.export.tracing import quiet_tracing

__all__ = ["DEFAULT_OPSET", "OPSETS", "onnx_bytes"]

OPSETS = range(16, 21)
"""From the first with GridSample to the last that every supported PyTorch writes."""

DEFAULT_OPSET = 17


def onnx_bytes(
    graph: DetectorGraph | TransformersGraph, description: Mapping[str, str], *, opset: int = DEFAULT_OPSET
) -> bytes:
    """The content of an ONNX file.

    PyTorch's exporter by tracing is used, in every version: the one by ``torch.export`` is missing or incomplete in the
    older supported ones, and would turn the many roundings of image sizes (windows, mergings) into conditions on them.

    Args:
        graph: from :func:`mokd_det.export.inference_graph`.
        description: stored as ``metadata_props``, see :func:`mokd_det.export.describe`.
        opset: version of the operator set, one of :data:`OPSETS`.

    Raises:
        ExportError: the package onnx is missing, the opset is none of them, or the model has an operation that ONNX
            has not.
    """
    try:
        import onnx
    except ImportError as error:
        raise ExportError("writing ONNX needs the package onnx: pip install onnx") from error
    if opset not in OPSETS:
        raise ExportError(
            f"opset {opset} cannot be written; choose one of {OPSETS.start} to {OPSETS.stop - 1}"
        )
    options = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False
    buffer = io.BytesIO()
    with quiet_tracing():
        inputs = graph.example_inputs()
        graph(*inputs)  # as for TorchScript
        try:
            torch.onnx.export(
                graph,
                inputs,
                buffer,
                opset_version=opset,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
                dynamic_axes={name: spec.free_axes for name, spec in {**INPUTS, **OUTPUTS}.items()},
                **options,
            )
        # torch.onnx reports what it cannot translate by several exception classes.
        except Exception as error:
            reason = first_line(error)
            raise ExportError(f"the model cannot be written as ONNX with opset {opset}: {reason}") from error
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, dict(description))
    onnx.checker.check_model(model)
    return model.SerializeToString()
