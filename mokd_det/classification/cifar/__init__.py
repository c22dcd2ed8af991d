"""Networks for 32-pixel images, with the tensors' names of the published CIFAR-100 checkpoints."""

from mokd_det.classification.cifar.mobilenet_v2 import CifarMobileNetV2, mobilenet_v2
from mokd_det.classification.cifar.network import CifarNetwork
from mokd_det.classification.cifar.resnet import CifarResNet, resnet8x4, resnet20, resnet32x4, resnet56
from mokd_det.classification.cifar.resnet50 import CifarResNet50, resnet50
from mokd_det.classification.cifar.shufflenet_v1 import CifarShuffleNetV1, shufflenet_v1
from mokd_det.classification.cifar.shufflenet_v2 import CifarShuffleNetV2, shufflenet_v2
from mokd_det.classification.cifar.wide_resnet import WideResNet, wrn_40_1, wrn_40_2

__all__ = [
    "CifarMobileNetV2",
    "CifarNetwork",
    "CifarResNet",
    "CifarResNet50",
    "CifarShuffleNetV1",
    "CifarShuffleNetV2",
    "WideResNet",
    "mobilenet_v2",
    "resnet8x4",
    "resnet20",
    "resnet32x4",
    "resnet50",
    "resnet56",
    "shufflenet_v1",
    "shufflenet_v2",
    "wrn_40_1",
    "wrn_40_2",
]
