"""CIFAR-10 (JPEG): the teacher, a ResNet-8 with 1,200 images of each class."""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.classification import ImageClassifier
from mokd_det.classification.cifar import CifarResNet
from mokd_det.classification.cifar10_jpeg import Cifar10Jpeg

from ..common.classification import alone
from ..FashionMNIST.common import optimizer
from .common import NUM_CLASSES, loaders, lr_multiplier, training


def resnet(depth: int, widths: tuple[int, ...]) -> Any:
    """A CIFAR ResNet with its cross-entropy."""
    return L(ImageClassifier)(
        network=L(CifarResNet)(depth=depth, widths=widths, num_classes="${..num_classes}"),
        num_classes=NUM_CLASSES,
    )


model = resnet(8, (16, 16, 32, 64))
objectives, balancer = alone.objectives, alone.balancer
dataloader = loaders(Cifar10Jpeg, 1200, mean=(0.49, 0.48, 0.45), std=(0.23, 0.22, 0.24))
dataloader["train"].update(views=None, keep_views=False)
train = training(400, "cifar10_teacher")
