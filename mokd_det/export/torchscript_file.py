"""TorchScript: a graph that libtorch runs without Python or this package."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import torch

from mokd_det.export.graph import DetectorGraph, TransformersGraph
from mokd_det.export.tracing import quiet_tracing

__all__ = ["DESCRIPTION_FILE", "torchscript_bytes"]

DESCRIPTION_FILE = "description.json"
"""Name under which the description lies in the archive (``_extra_files`` of ``torch.jit.load``)."""


def torchscript_bytes(graph: DetectorGraph | TransformersGraph, description: Mapping[str, str]) -> bytes:
    """The content of a TorchScript file.

    Args:
        graph: from :func:`mokd_det.export.inference_graph`.
        description: stored beside it, see :func:`mokd_det.export.describe`.
    """
    with quiet_tracing():
        inputs = graph.example_inputs()
        graph(*inputs)  # once outside the trace: what a model checks on its first call is no part of it
        traced = torch.jit.trace(graph, inputs, check_trace=False)
        buffer = io.BytesIO()
        extra = {DESCRIPTION_FILE: json.dumps(dict(description), indent=2, ensure_ascii=False)}
        torch.jit.save(traced, buffer, _extra_files=extra)
    return buffer.getvalue()
