"""Torchvision's detectors behind Detectron2's interface."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.models import detection

from mokd_det.errors import ConfigError
from mokd_det.modeling import TorchvisionDetector


def faster_rcnn() -> nn.Module:
    torch.manual_seed(0)
    return detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4)


def ssdlite() -> nn.Module:
    torch.manual_seed(0)
    return detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)


def item(height: int, width: int, boxes: list[list[float]], original: tuple[int, int]) -> dict[str, Any]:
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": original[0], "width": original[1]}


@pytest.fixture
def batch() -> list[dict[str, Any]]:
    torch.manual_seed(1)
    return [item(96, 128, [[8, 8, 60, 70]], (192, 256)), item(64, 96, [], (32, 48))]


class Recording(nn.Module):
    """Stands in for a detector's network: keeps what the transform gave it."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.transform = detector.transform
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: Any = None

    def forward(self, images: Any, targets: Any = None) -> Any:
        sizes = [tuple(image.shape[-2:]) for image in images]
        self.seen = self.transform(images, targets)
        if self.training:
            return {"loss_classifier": self.weight, "bbox_regression": self.weight}
        boxes = torch.tensor([[8.0, 8.0, 60.0, 62.0], [-9.0, 4.0, 900.0, 20.0]])
        found = [
            {"boxes": boxes.clone(), "labels": torch.tensor([1, 3]), "scores": torch.tensor([0.9, 0.8])}
            for _ in sizes
        ]
        return self.transform.postprocess(found, self.seen[0].image_sizes, sizes)


def test_inputs_and_outputs_are_detectron2s(batch) -> None:
    model = TorchvisionDetector(Recording(faster_rcnn()), background_first=True)
    losses = model.train()(batch)
    assert set(losses) == {"loss_classifier", "loss_bbox_regression"}
    images, targets = model.detector.seen
    assert images.image_sizes == [(96, 128), (64, 96)] and images.tensors.shape == (2, 3, 96, 128)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(images.tensors[0], (batch[0]["image"] / 255 - mean) / std)
    assert targets[0]["boxes"].tolist() == [[8, 8, 60, 70]] and targets[0]["labels"].tolist() == [1]
    assert targets[1]["boxes"].shape == (0, 4)
    first, second = (found["instances"] for found in model.eval()(batch))
    assert first.image_size == (192, 256) and second.image_size == (32, 48)
    # doubled and clipped to the original image; classes without the background
    assert first.pred_boxes.tensor.tolist() == [[16, 16, 120, 124], [0, 8, 256, 40]]
    assert first.pred_classes.tolist() == [0, 2] and first.scores.tolist() == pytest.approx([0.9, 0.8])
    assert second.pred_boxes.tensor[0].tolist() == [4, 4, 30, 31]


@pytest.mark.parametrize(("make", "offset"), [(faster_rcnn, 1), (ssdlite, 1)])
def test_real_detectors_train_and_predict(make, offset, batch) -> None:
    detector = make()
    keys = list(detector.state_dict())
    model = TorchvisionDetector(detector)
    assert model.label_offset == offset
    losses = model.train()(batch)
    assert losses and all(name.startswith("loss_") for name in losses)
    sum(losses.values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in detector.backbone.parameters())
    with torch.no_grad():
        found = model.eval()(batch)
    assert [p["instances"].image_size for p in found] == [(192, 256), (32, 48)]
    assert all((p["instances"].pred_classes >= 0).all() for p in found)
    assert list(detector.state_dict()) == keys
    assert list(model.state_dict()) == [f"detector.{key}" for key in keys]


def test_label_offsets_follow_the_class() -> None:
    options = {"weights": None, "weights_backbone": None, "num_classes": 4}
    retinanet = TorchvisionDetector(detection.retinanet_resnet50_fpn(**options))
    assert retinanet.label_offset == 0
    assert TorchvisionDetector(retinanet.detector, background_first=True).label_offset == 1
    assert META_ARCH_REGISTRY.get("TorchvisionDetector") is TorchvisionDetector


def test_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="Linear is no torchvision detector"):
        TorchvisionDetector(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="background_first must be given for Recording"):
        TorchvisionDetector(Recording(faster_rcnn()))
