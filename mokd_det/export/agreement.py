"""Does an exported graph find what the model finds? On real images, in sizes that the export has not seen."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from mokd_det.errors import ExportError, first_line

__all__ = [
    "Agreement",
    "Detections",
    "Runner",
    "compare_detections",
    "measure_agreement",
    "onnx_runner",
    "pad_batch",
    "photographs",
    "torchscript_runner",
]

Detections = tuple[Tensor, Tensor, Tensor]
"""boxes (B, K, 4), scores (B, K) and labels (B, K), as :data:`mokd_det.export.OUTPUTS`."""

Runner = Callable[[Tensor, Tensor], Detections]
"""An exported graph: images (B, 3, H, W) and image_sizes (B, 2) to detections."""


@dataclass(frozen=True)
class Agreement:
    """The largest differences between two sets of detections of so many images: of scores, rank by rank, and of a box
    to the nearest one of the same class and score, in units of the image's longer side."""

    score: float
    box: float
    images: int

    def within(self, tolerance: float) -> bool:
        """Whether neither is larger; never with NaN."""
        return self.score <= tolerance and self.box <= tolerance

    def __str__(self) -> str:
        return f"scores differ by at most {self.score:.1e}, boxes by {self.box:.1e} of the image ({self.images} images)"


def photographs(sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """scikit-learn's two photographs in turn, each shrunk to one of the (height, width); uint8 (3, H, W), RGB."""
    originals = [torch.tensor(image).permute(2, 0, 1)[None].float() for image in load_sample_images().images]
    return [
        nn.functional.interpolate(originals[index % 2], size=size, mode="bilinear", antialias=True)[0]
        .round()
        .to(torch.uint8)
        for index, size in enumerate(sizes)
    ]


def pad_batch(images: Sequence[Tensor], filling: float = 0.0) -> tuple[Tensor, Tensor]:
    """Images (3, H, W) of any sizes, RGB in 0..255, as the inputs of an exported graph: images (B, 3, H_max, W_max)
    float32, padded with a value that graphs ignore, and image_sizes (B, 2) int64."""
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = sizes.amax(0).tolist()
    batch = torch.full((len(images), 3, height, width), filling)
    for row, image in zip(batch, images):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def compare_detections(ours: Detections, theirs: Detections, longer_sides: Tensor, tie: float) -> Agreement:
    """Compare two sets of detections of the same images.

    Detections whose scores differ by rounding only may have changed places, and the last may have been replaced by
    another one of the same score: so a box is compared with the nearest one of its class whose score is nearly equal.

    Args:
        longer_sides: (B,) in pixels.
        tie: scores that differ by no more are nearly equal.
    """
    boxes, scores, labels = ours
    other_boxes, other_scores, other_labels = theirs
    if scores.shape != other_scores.shape:
        raise ExportError(
            f"the exported model gives detections of shape {tuple(other_scores.shape)} instead of {tuple(scores.shape)}"
        )
    score = (scores - other_scores).abs().max().item()
    partner = (labels[:, :, None] == other_labels[:, None, :]) & (
        (scores[:, :, None] - other_scores[:, None, :]).abs() <= tie
    )
    distance = (boxes[:, :, None] - other_boxes[:, None, :]).abs().amax(-1) / longer_sides[:, None, None]
    distance = distance.masked_fill(~partner, float("inf")).amin(-1)  # (B, K)
    replaceable = scores <= scores[:, -1:] + tie
    distance = distance.masked_fill(replaceable & distance.isinf(), 0.0)
    return Agreement(score, distance.max().item(), len(scores))


def measure_agreement(
    model: nn.Module, run: Runner, batches: Sequence[Sequence[Tensor]], tolerance: float = 1e-4
) -> Agreement:
    """The largest differences between a model in eval mode on the CPU, asked in Detectron2's way, and an exported
    graph, on batches of images (3, H, W), RGB in 0..255; the tolerance is the ``tie`` of :func:`compare_detections`.

    Raises:
        ExportError: the graph cannot be run on one of the batches.
    """
    found: list[Agreement] = []
    for images in batches:
        with torch.no_grad():
            instances = [output["instances"] for output in model([{"image": image} for image in images])]
        ours = (
            torch.stack([item.pred_boxes.tensor for item in instances]),
            torch.stack([item.scores for item in instances]),
            torch.stack([item.pred_classes for item in instances]),
        )
        padded, sizes = pad_batch(images, filling=127.0)
        # Runtimes report a graph that does not fit its input by exception classes of their own.
        try:
            theirs = run(padded, sizes)
        except Exception as error:
            shape = tuple(padded.shape)
            raise ExportError(
                f"the exported graph fails on images of shape {shape}: {first_line(error)}"
            ) from error
        found.append(compare_detections(ours, theirs, sizes.amax(1), tolerance))
    return Agreement(
        # max() of Python would pass over NaN
        float(np.max([item.score for item in found])),
        float(np.max([item.box for item in found])),
        sum(item.images for item in found),
    )


def torchscript_runner(content: bytes) -> Runner:
    """A TorchScript file's graph."""
    graph = torch.jit.load(io.BytesIO(content), map_location="cpu")

    def run(images: Tensor, image_sizes: Tensor) -> Detections:
        with torch.no_grad():
            return graph(images, image_sizes)

    return run


def onnx_runner(content: bytes, threads: int | None = None) -> Runner:
    """An ONNX file's graph in ONNX Runtime on the CPU, by default with as many threads per operator as PyTorch uses.

    Raises:
        ExportError: the package onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(
            "checking an ONNX file needs the package onnxruntime: pip install onnxruntime (or leave the check out: "
            "--no-check)"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor, image_sizes: Tensor) -> Detections:
        outputs = session.run(None, {"images": images.numpy(), "image_sizes": image_sizes.numpy()})
        boxes, scores, labels = (torch.from_numpy(output) for output in outputs)
        return boxes, scores, labels

    return run
