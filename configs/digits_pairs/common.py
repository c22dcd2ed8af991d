"""Pairs of small detectors for methods that need something else than a ViDT, on scenes of three digits from scratch.

CrossKD needs dense heads (FCOS), LD distributions over a box's sides (D-FINE). Nothing here has converged: these runs
show that the methods train, not what they are worth (docs/results.md).
"""

from typing import Any

from detectron2.config import LazyCall as L
from timm.models.resnet import BasicBlock, ResNet
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from mokd_det.modeling import TorchvisionDetector

from ..quickstart.common import dataloader, lr_multiplier, optimizer, train
from ..transformers_digits.common import detector

WIDTH = 64
pyramid = dict(path="detector.backbone", strides=[8, 16, 32, 64, 128], channels=[WIDTH] * 5)


def fcos(channels: int, depth: int) -> Any:
    """Torchvision's FCOS on a timm ResNet of four stages of ``channels`` · (1, 2, 4, 8)."""
    stages = [channels, 2 * channels, 4 * channels, 8 * channels]
    backbone = L(BackboneWithFPN)(
        backbone=L(ResNet)(
            block=BasicBlock, layers=[depth] * 4, channels=stages, stem_width=channels, num_classes=0
        ),
        return_layers=dict(layer2="0", layer3="1", layer4="2"),
        in_channels_list=stages[1:],
        out_channels=WIDTH,
        extra_blocks=L(LastLevelP6P7)(in_channels=WIDTH, out_channels=WIDTH),
    )
    return L(TorchvisionDetector)(detector=L(FCOS)(backbone=backbone, num_classes=3))


def d_fine(width: int, layers: int) -> Any:
    """transformers' D-FINE on a ResNet of four stages, ``layers`` of a decoder, 16 queries."""
    return detector("d_fine", width, layers, levels=3, num_denoising=20)


dataloader.train.dataset = "digits_few_train"
dataloader.test.dataset = "digits_few_val"
train.conflict_period = train.diagnostics_period = 0
optimizer.fused = True
