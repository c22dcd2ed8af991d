"""What an exported detector computes: raw pixels in, the best detections out, tensors only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mokd_det.errors import ExportError
from mokd_det.layers import MultiScaleDeformableAttention
from mokd_det.modeling import TransformersDetector, ViDT
from mokd_det.modeling.postprocess import top_predictions

__all__ = ["INPUTS", "OUTPUTS", "DetectorGraph", "TensorSpec", "example_inputs", "inference_graph"]


EXPORTED_KERNELS = ("gather", "grid_sample")
"""Kernels of deformable attention that are made of operations that a graph can hold."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an exported graph.

    Attributes:
        dtype: "float32" or "int64".
        shape: sizes, and names of those that are free.
        meaning: in words, units included.
    """

    dtype: str
    shape: tuple[str | int, ...]
    meaning: str

    @property
    def free_axes(self) -> dict[int, str]:
        """Position and name of every free size."""
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str)}


INPUTS: Mapping[str, TensorSpec] = {
    "images": TensorSpec(
        "float32",
        ("batch", 3, "height", "width"),
        "RGB pixels in 0..255, not normalised; a smaller image lies in the upper left corner, and what is right of "
        "and below it is ignored",
    ),
    "image_sizes": TensorSpec("int64", ("batch", 2), "(height, width) in pixels of each image in the batch"),
}
"""Normalisation and the padding mask are inside the graph; resizing is not."""

OUTPUTS: Mapping[str, TensorSpec] = {
    "boxes": TensorSpec(
        "float32",
        ("batch", "detections", 4),
        "x1, y1, x2, y2 in pixels of the image as it was given (resized), not clipped to it",
    ),
    "scores": TensorSpec("float32", ("batch", "detections"), "in 0..1, descending"),
    "labels": TensorSpec("int64", ("batch", "detections"), "class indices from 0, as in class_names"),
}
"""The best queries and classes are picked inside the graph; there is no threshold and no suppression."""


class DetectorGraph(nn.Module):
    """A :class:`ViDT` with :data:`INPUTS` and :data:`OUTPUTS`.

    Args:
        model: in eval mode; it is used, not copied.
    """

    def __init__(self, model: ViDT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: (B, 3, H, W) float32.
            image_sizes: (B, 2) int64.

        Returns:
            boxes (B, K, 4), scores (B, K) and labels (B, K).
        """
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device)[:, None]
        columns = torch.arange(width, device=images.device)
        sizes = image_sizes[:, :, None, None]
        padding = (rows >= sizes[:, 0]) | (columns >= sizes[:, 1])  # (B, H, W)
        pixels = (images - self.model.pixel_mean) / self.model.pixel_std
        output = self.model.forward_tensors(pixels.masked_fill(padding[:, None], 0.0), padding)
        scores, labels, boxes = top_predictions(
            output.logits[-1], output.boxes[-1], image_sizes, self.model.topk
        )
        return boxes, scores, labels


def inference_graph(model: nn.Module, deformable_attention: str = "grid_sample") -> DetectorGraph:
    """A copy of a detector in the form that is exported: on the CPU, in float32, in eval mode.

    Args:
        model: a student; it is not changed.
        deformable_attention: the kernel of its deformable attention: "grid_sample", or "gather" for runtimes that
            compute ``GridSample`` wrongly.

    Raises:
        ExportError: a model that has no such form.
    """
    if isinstance(model, TransformersDetector):
        raise ExportError(
            f"{type(model.detector).__name__} cannot be exported as a graph here; its folder student_final is one of "
            "transformers, for the exporters made for that. Its weights can be written: give an OUTPUT that ends with "
            ".safetensors"
        )
    if not isinstance(model, ViDT):
        raise ExportError(
            f"{type(model).__name__} cannot be exported as a graph: only ViDT can, whose number of detections is "
            "fixed; detectors with thresholds and suppression of overlaps return as many as they find in each image. "
            "Their weights can be written: give an OUTPUT that ends with .safetensors"
        )
    if deformable_attention not in EXPORTED_KERNELS:
        raise ExportError(
            f"unknown deformable attention {deformable_attention!r}; there are {', '.join(EXPORTED_KERNELS)}"
        )
    graph = DetectorGraph(copy.deepcopy(model)).cpu().float().eval().requires_grad_(False)
    graph.model.criterion = None
    for module in graph.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.kernel = deformable_attention
    return graph


def example_inputs() -> tuple[Tensor, Tensor]:
    """Inputs to trace with; no size in them is left in an exported graph."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 67, 93, generator=generator) * 255
    return images, torch.tensor([[67, 80], [51, 93]])
