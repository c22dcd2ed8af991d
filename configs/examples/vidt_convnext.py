"""A ViDT on a backbone of your choice, here timm's ConvNeXt-atto; the bundled digits, because they train on a CPU."""

from detectron2.config import LazyCall as L

from mokd_det.modeling.backbone import TimmRAM

from ..common.objectives import alone
from ..quickstart.common import dataloader, lr_multiplier, optimizer, train
from ..quickstart.common import student as model

model.backbone = L(TimmRAM)(
    host="convnext_atto",  # any timm model with maps of strides 8, 16 and 32
    weights="",  # its pretrained weights: a local file as timm publishes it
    num_det_tokens=16,
    det_channels=64,
    pos_channels=64,
)
objectives, balancer = alone.objectives, alone.balancer
train.output_dir = "output/examples/vidt_convnext"
