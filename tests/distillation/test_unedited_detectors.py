"""Detectron2's own detectors, distilled by module path alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from mokd_det.distillation import Distiller, MoKD, ProjectorMatching
from mokd_det.distillation.methods import Method


def retinanet(depth: int, channels: int, convolutions: int = 1) -> nn.Module:
    config = model_zoo.get_config("common/models/retinanet.py").model
    config.num_classes = 3
    config.backbone.out_channels = channels
    config.head.conv_dims = [channels] * convolutions
    config.head.input_shape = [ShapeSpec(channels=channels)] * 5
    if depth < 50:
        del config.backbone.bottom_up.stages.stride_in_1x1
        config.backbone.top_block.in_channels = 512
    config.backbone.bottom_up.stages.depth = depth
    config.backbone.bottom_up.freeze_at = 0
    return instantiate(config)


@pytest.fixture
def labelled_batch() -> list[dict[str, Any]]:
    batch = []
    for size in ((64, 96), (48, 64)):
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.tensor([[4.0, 6.0, 40.0, 44.0]]))
        instances.gt_classes = torch.tensor([1])
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        batch.append({"image": image, "height": size[0], "width": size[1], "instances": instances})
    return batch


@pytest.mark.parametrize(
    ("method", "tap"),
    [(MoKD(n=64), "backbone"), (ProjectorMatching("mlp"), {"path": "backbone", "strides": [8, 16]})],
)
def test_retinanet_from_a_deeper_and_wider_one(method: Method, tap: Any, labelled_batch) -> None:
    model = Distiller(retinanet(18, 16), retinanet(50, 32), method, taps={"patch": tap})
    with EventStorage():
        losses = model(labelled_batch)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_distill_patch"}
    losses["loss_distill_patch"].backward()
    assert model.student.backbone.bottom_up.stem.conv1.weight.grad.abs().sum() > 0
    predictions = model.eval()(labelled_batch)
    assert [p["instances"].image_size for p in predictions] == [(64, 96), (48, 64)]
