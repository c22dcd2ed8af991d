"""Detectron2's own detectors for COCO with ResNets of any depth."""

from typing import Any

from detectron2 import model_zoo


def with_depth(model: Any, depth: int) -> Any:
    """The zoo's model (ResNet-50) with another ResNet; below 50, trained from scratch with BatchNorm."""
    stages = model.backbone.bottom_up.stages
    stages.depth = depth
    if depth < 50:
        del stages.stride_in_1x1  # these blocks have no 1x1 convolutions
        stages.norm = model.backbone.bottom_up.stem.norm = "BN"
    return model


def retinanet(depth: int) -> Any:
    """RetinaNet on FPN levels p3 to p7."""
    model = with_depth(model_zoo.get_config("common/models/retinanet.py").model, depth)
    model.backbone.top_block.in_channels = 2048 if depth >= 50 else 512
    return model


def faster_rcnn(depth: int) -> Any:
    """Faster R-CNN on FPN levels p2 to p6."""
    model = with_depth(model_zoo.get_config("common/models/mask_rcnn_fpn.py").model, depth)
    for key in ("mask_in_features", "mask_pooler", "mask_head"):
        del model.roi_heads[key]
    return model
