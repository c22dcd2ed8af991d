"""The networks of the CIFAR distillation literature, by their published names; ``pair.num_classes`` classes."""

from collections.abc import Callable
from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.classification import ImageClassifier
from mokd_det.classification.cifar import (
    CifarResNet,
    mobilenet_v2,
    resnet8x4,
    resnet20,
    resnet32x4,
    resnet50,
    resnet56,
    shufflenet_v1,
    shufflenet_v2,
    wrn_40_1,
    wrn_40_2,
)


def classifier(network: Callable[..., Any], **sizes: Any) -> Any:
    """A network with its cross-entropy."""
    return L(ImageClassifier)(
        network=L(network)(num_classes="${pair.num_classes}", **sizes), num_classes="${pair.num_classes}"
    )


# kind: which learning rate of a recipe the network takes
networks = dict(
    resnet20=dict(model=classifier(resnet20), kind="resnet"),
    resnet56=dict(model=classifier(resnet56), kind="resnet"),
    resnet8x4=dict(model=classifier(resnet8x4), kind="resnet"),
    resnet32x4=dict(model=classifier(resnet32x4), kind="resnet"),
    wrn_40_1=dict(model=classifier(wrn_40_1), kind="resnet"),
    wrn_40_2=dict(model=classifier(wrn_40_2), kind="resnet"),
    ResNet50=dict(model=classifier(resnet50), kind="resnet"),
    MobileNetV2=dict(model=classifier(mobilenet_v2), kind="mobile"),
    ShuffleV1=dict(model=classifier(shufflenet_v1), kind="mobile"),
    ShuffleV2=dict(model=classifier(shufflenet_v2), kind="mobile"),
)
