"""Graphs of Hugging Face's detectors find in ONNX Runtime what the model finds, at several sizes."""

from __future__ import annotations

import pytest
import torch

from mokd_det.errors import ExportError
from mokd_det.export import inference_graph, measure_agreement, onnx_bytes, onnx_runner, photographs
from mokd_det.modeling import TransformersDetector
from tests.modeling.tiny_transformers import TINY, tiny_config

pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

REFUSED = {
    "RfDetrForObjectDetection": "position embeddings bicubically",
    "DeformableDetrForObjectDetection": "from the traced sizes",
}


def detector(name: str) -> TransformersDetector:
    """Of weights that tell the cells of an image apart: a fresh RT-DETR finds all equal, and which of equal proposals
    its decoder then starts from is each runtime's choice."""
    torch.manual_seed(1)
    model = TransformersDetector(tiny_config(name), image_size=64).eval()
    spread = 0.3 if name.startswith("RTDetr") else 0.1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TINY) - set(REFUSED)))
def test_graphs_agree_to_1e_4(name: str) -> None:
    graph = inference_graph(detector(name))
    content = onnx_bytes(graph, {})
    sizes = {size for batch in graph.check_sizes for size in batch}
    assert len(sizes) >= 2
    batches = [photographs(batch) for batch in graph.check_sizes]
    agreement = measure_agreement(graph.model, onnx_runner(content, threads=1), batches)
    assert agreement.within(1e-4), agreement


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_has_no_right_graph_is_named(name: str) -> None:
    with pytest.raises(ExportError, match=REFUSED[name]):
        inference_graph(TransformersDetector(tiny_config(name), image_size=64))
