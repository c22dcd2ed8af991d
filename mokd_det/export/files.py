"""The files that graphs are exported to: ONNX, in standard operators, and TorchScript, which libtorch runs without
Python or this package."""

from __future__ import annotations

import inspect
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from mokd_det.errors import ExportError, first_line
from mokd_det.export.graph import INPUTS, OUTPUTS, DetectorGraph, TransformersGraph

__all__ = ["DEFAULT_OPSET", "DESCRIPTION_FILE", "OPSETS", "onnx_bytes", "torchscript_bytes"]

OPSETS = range(16, 21)
"""From the first with GridSample to the last that every supported PyTorch writes."""

DEFAULT_OPSET = 17

DESCRIPTION_FILE = "description.json"
"""Name under which the description lies in the archive (``_extra_files`` of ``torch.jit.load``)."""


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
    with _quiet_tracing():
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
            problem = f"the model cannot be written as ONNX with opset {opset}"
            raise ExportError(f"{problem}: {first_line(error)}") from error
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, dict(description))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def torchscript_bytes(graph: DetectorGraph | TransformersGraph, description: Mapping[str, str]) -> bytes:
    """The content of a TorchScript file; for the arguments see :func:`onnx_bytes`."""
    with _quiet_tracing():
        inputs = graph.example_inputs()
        graph(*inputs)  # once outside the trace: what a model checks on its first call is no part of it
        traced = torch.jit.trace(graph, inputs, check_trace=False)
        buffer = io.BytesIO()
        extra = {DESCRIPTION_FILE: json.dumps(dict(description), indent=2, ensure_ascii=False)}
        torch.jit.save(traced, buffer, _extra_files=extra)
    return buffer.getvalue()


@contextmanager
def _quiet_tracing() -> Iterator[None]:
    """No gradients, and no warnings: what a trace would warn of is checked afterwards, on sizes that it has not seen.

    The tracer warns wherever Python code asks for a size. The models here do so only for what no input changes
    (channels, numbers of queries) or in a way that a trace records.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
