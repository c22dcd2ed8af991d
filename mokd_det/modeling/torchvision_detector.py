"""Torchvision's detectors with Detectron2's inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from mokd_det.errors import ConfigError

from .dense_head import BoxCoding, DenseHead

__all__ = ["TorchvisionDetector"]


@META_ARCH_REGISTRY.register()
class TorchvisionDetector(nn.Module):
    """Any torchvision detector as a Detectron2 model, so that trainer, evaluator and taps work on it unchanged.

    The detector itself is ``detector``: its taps are paths such as ``"detector.backbone"``, and
    ``detector.state_dict()`` is torchvision's. Resizing is the data mapper's business here, as with every other
    model, so torchvision's own is switched off; it still normalises and pads.

    Args:
        detector: from one of the builders of ``torchvision.models.detection``.
        background_first: whether class 0 of the detector is the background, so that its labels are ours + 1; None:
            as the detector's class needs it (yes for Faster and Mask R-CNN and SSD, no for RetinaNet and FCOS).

    Raises:
        ConfigError: a detector without torchvision's input transform, or of an unknown class without
            ``background_first``.
    """

    def __init__(self, detector: nn.Module, background_first: bool | None = None) -> None:
        super().__init__()
        name = type(detector).__name__
        if not isinstance(getattr(detector, "transform", None), GeneralizedRCNNTransform):
            raise ConfigError(f"{name} is no torchvision detector: it has no GeneralizedRCNNTransform")
        if background_first is None:
            known = {FasterRCNN: True, SSD: True, RetinaNet: False, FCOS: False}
            choices = [first for kind, first in known.items() if isinstance(detector, kind)]
            if not choices:
                raise ConfigError(
                    f"background_first must be given for {name}: True if its class 0 is the background, else False"
                )
            background_first = choices[0]
        self.detector = detector
        self.label_offset = int(background_first)
        given = detector.transform
        sizes, statistics = (given.min_size, given.max_size), (given.image_mean, given.image_std)
        detector.transform = _WithoutResizing(*sizes, *statistics, given.size_divisible, given.fixed_size)

    def forward(
        self, batched_inputs: Sequence[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Detectron2's interface, see :meth:`mokd_det.modeling.ViDT.forward`.

        The losses are torchvision's, each name with ``loss_`` in front.
        """
        device = next(self.detector.parameters()).device
        images = [item["image"].to(device, non_blocking=True).float() / 255 for item in batched_inputs]
        if self.training:
            targets = [self._target(item["instances"], device) for item in batched_inputs]
            losses = self.detector(images, targets)
            return {f"loss_{name.removeprefix('loss_')}": loss for name, loss in losses.items()}
        return [
            {"instances": self._instances(item, found)}
            for item, found in zip(batched_inputs, self.detector(images), strict=True)
        ]

    def dense_heads(self) -> dict[str, DenseHead]:
        """Class and box head of RetinaNet and FCOS (see :mod:`mokd_det.modeling.dense_head`)."""
        if not isinstance(self.detector, (RetinaNet, FCOS)):
            return {}
        head = "detector.head"
        coding: BoxCoding = "distances" if isinstance(self.detector, FCOS) else "deltas"
        return {
            "class": DenseHead(f"{head}.classification_head.conv", f"{head}.classification_head.cls_logits"),
            "box": DenseHead(f"{head}.regression_head.conv", f"{head}.regression_head.bbox_reg", coding),
        }

    def _target(self, instances: Instances, device: torch.device) -> dict[str, Tensor]:
        return {
            "boxes": instances.gt_boxes.tensor.to(device, torch.float32),
            "labels": instances.gt_classes.to(device, torch.int64) + self.label_offset,
        }

    def _instances(self, item: dict[str, Any], found: dict[str, Tensor]) -> Instances:
        size = tuple(item["image"].shape[-2:])
        instances = Instances(size)
        instances.pred_boxes = Boxes(found["boxes"])
        instances.scores = found["scores"]
        instances.pred_classes = found["labels"] - self.label_offset
        return detector_postprocess(instances, item.get("height", size[0]), item.get("width", size[1]))


class _WithoutResizing(GeneralizedRCNNTransform):
    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target
