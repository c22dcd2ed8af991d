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

__all__ = [
    "CHECK_SIZES",
    "INPUTS",
    "OUTPUTS",
    "DetectorGraph",
    "TensorSpec",
    "TransformersGraph",
    "inference_graph",
]

Sizes = tuple[tuple[tuple[int, int], ...], ...]

CHECK_SIZES: Sizes = (((96, 128),), ((75, 110), (120, 61)), ((41, 157), (160, 160), (33, 70)))
"""(height, width) of the images of each batch: alone, padded, odd, three at once."""


EXPORTED_KERNELS = ("gather", "grid_sample")
"""Kernels of deformable attention that are made of operations that a graph can hold."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an exported graph: "float32" or "int64", its sizes, with names for those that are free, and
    its meaning in words, units included."""

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
        "and below it is ignored (Hugging Face's models without a padding mask: every image fills the batch)",
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
    """A :class:`ViDT` in eval mode, used and not copied, with :data:`INPUTS` and :data:`OUTPUTS`."""

    def __init__(self, model: ViDT) -> None:
        super().__init__()
        self.model = model

    @property
    def check_sizes(self) -> Sizes:
        """(height, width) of the images of each batch on which the exported graph is compared with the model."""
        return CHECK_SIZES

    def example_inputs(self) -> tuple[Tensor, Tensor]:
        """Inputs to trace with; no size in them is left in an exported graph."""
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(2, 3, 67, 93, generator=generator) * 255
        return images, torch.tensor([[67, 80], [51, 93]])

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """boxes (B, K, 4), scores (B, K) and labels (B, K) of images (B, 3, H, W) with image_sizes (B, 2)."""
        padding = _padding(images, image_sizes)
        pixels = (images - self.model.pixel_mean) / self.model.pixel_std
        output = self.model.forward_tensors(pixels.masked_fill(padding[:, None], 0.0), padding)
        best = top_predictions(output.logits[-1], output.boxes[-1], image_sizes, self.model.topk)
        scores, labels, boxes = best
        return boxes, scores, labels


class TransformersGraph(nn.Module):
    """A :class:`TransformersDetector` with :data:`INPUTS` and :data:`OUTPUTS`; the sides are multiples of its divisor.

    Args:
        model: in eval mode; it is used, not copied, and resizes no longer.

    Raises:
        ExportError: a family whose graph would not be right.
    """

    def __init__(self, model: TransformersDetector) -> None:
        super().__init__()
        kind = model.detector.config.model_type
        if kind in _WITHOUT_GRAPH:
            raise ExportError(
                f"{type(model.detector).__name__} cannot be exported as a graph: {_WITHOUT_GRAPH[kind]}. Its weights "
                "can be written: give an OUTPUT that ends with .safetensors"
            )
        self.model = model
        self._divisor = model.family.divisor(model.detector.config)
        side = -(-256 // self._divisor) * self._divisor
        # The size it is trained for: smaller maps may have fewer cells than the model has queries.
        self._size = model.image_size or (side, side)
        model.image_size = None

    @property
    def check_sizes(self) -> Sizes:
        """As :attr:`DetectorGraph.check_sizes`, with the sides that the model takes."""
        (height, width), more = self._size, self._divisor
        if more == 1:
            return CHECK_SIZES
        if self.model.family.is_square(self.model.detector.config):
            return ((self._size,), ((height + more, width + more),) * 2)
        return ((self._size,), ((height + more, width),) * 2, ((height, width + more),))

    def example_inputs(self) -> tuple[Tensor, Tensor]:
        """As :meth:`DetectorGraph.example_inputs`."""
        generator = torch.Generator().manual_seed(0)
        height, width = self._size
        sizes = [[height, width]] * 2
        if self._divisor == 1:
            sizes = [[height, width - 13], [height - 16, width]]
        return torch.rand(2, 3, height, width, generator=generator) * 255, torch.tensor(sizes)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`DetectorGraph.forward`."""
        pixels = (images - self.model.pixel_mean) / self.model.pixel_std
        padding = _padding(images, image_sizes)
        if self.model.family.masks:
            pixels = pixels.masked_fill(padding[:, None], 0.0)
        logits, boxes = self.model.detect_tensors(pixels, padding)
        scores, labels, boxes = self.model.detections(logits, boxes, image_sizes)
        return boxes, scores, labels


_WITHOUT_GRAPH = {
    "rf_detr": "it resizes its position embeddings bicubically with antialiasing, which ONNX does not have",
    "deformable_detr": "transformers computes its reference points from the traced sizes, so that its graph would be "
    "right for no others",
}


def _padding(images: Tensor, image_sizes: Tensor) -> Tensor:
    """(B, H, W), True right of and below each image."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    sizes = image_sizes[:, :, None, None]
    return (rows >= sizes[:, 0]) | (columns >= sizes[:, 1])


def inference_graph(
    model: nn.Module, deformable_attention: str = "grid_sample"
) -> DetectorGraph | TransformersGraph:
    """A copy of a detector in the form that is exported: on the CPU, in float32, in eval mode.

    A ViDT's deformable attention has the kernel "grid_sample" (transformers' own), or "gather" for runtimes that
    compute ``GridSample`` wrongly.

    Raises:
        ExportError: a model that has no such form.
    """
    if isinstance(model, TransformersDetector):
        return TransformersGraph(copy.deepcopy(model).cpu().float().requires_grad_(False)).eval()
    if not isinstance(model, ViDT):
        raise ExportError(
            f"{type(model).__name__} cannot be exported as a graph: only ViDT and Hugging Face's detectors can, whose "
            "number of detections is fixed; detectors with thresholds and suppression of overlaps return as many as "
            "they find in each image. Their weights can be written: give an OUTPUT that ends with .safetensors"
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
