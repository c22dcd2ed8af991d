"""Detections on pictures, by Detectron2's visualizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

from mokd_det.visualization.figure_style import LIGHT_COLOURS, literal_text

__all__ = ["DetectionDrawer"]

_READABLE_SIDE = 480


class DetectionDrawer:
    """Draws boxes (and masks), class names and scores.

    A class has one colour in all pictures, so that a video does not flicker; there are fewer colours than classes may
    be, and the label tells.
    """

    def __init__(self, class_names: Sequence[str], scale: int | None = None) -> None:
        """``scale`` is the whole factor by which pictures are enlarged; None: what brings a small one to 480 pixels, so
        that its labels can be read."""
        colours = [[int(value[i : i + 2], 16) for i in (1, 3, 5)] for value in LIGHT_COLOURS]
        self._metadata = Metadata()
        self._metadata.set(
            thing_classes=list(class_names),
            thing_colors=[colours[i % len(colours)] for i in range(len(class_names))],
        )
        self._scale = scale

    def draw(self, image: np.ndarray, instances: Instances) -> np.ndarray:
        """A picture, uint8 (H, W, 3) RGB, with detections on the CPU, enlarged by a whole factor f to (f·H, f·W, 3)."""
        factor = self._scale or max(1, -(-_READABLE_SIDE // max(image.shape[:2])))
        if factor > 1:
            # Not by the visualizer's own scale, which would make its lines and letters as many times thicker.
            image, instances = _enlarge(image, instances, factor)
        with literal_text():
            visualizer = Visualizer(image, self._metadata, instance_mode=ColorMode.SEGMENTATION)
            drawn = visualizer.draw_instance_predictions(instances, jittering=False).get_image()
        return np.ascontiguousarray(drawn[..., :3])


def _enlarge(image: np.ndarray, instances: Instances, factor: int) -> tuple[np.ndarray, Instances]:
    """The same with every pixel as ``factor`` by ``factor`` pixels."""
    height, width = (side * factor for side in image.shape[:2])
    larger = Instances((height, width), scores=instances.scores, pred_classes=instances.pred_classes)
    larger.pred_boxes = Boxes(instances.pred_boxes.tensor * factor)
    if instances.has("pred_masks"):
        larger.pred_masks = instances.pred_masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return image.repeat(factor, axis=0).repeat(factor, axis=1), larger
