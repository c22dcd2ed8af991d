"""MoKD across architectures: torchvision's FCOS on a ResNet-50 FPN from the patch tokens of ViDT-small."""

from detectron2.config import LazyCall as L
from torchvision.models.detection import fcos_resnet50_fpn

from mokd_det.distillation import Distiller, MoKD
from mokd_det.modeling import TorchvisionDetector

from ..common.coco import dataloader
from ..common.objectives import mokd_convolutional as mokd
from ..common.schedule_1x import lr_multiplier, optimizer, train
from ..common.vidt import small as teacher

pyramid = dict(path="detector.backbone", strides=[8, 16, 32, 64, 128], channels=[256] * 5)

model = L(Distiller)(
    student=L(TorchvisionDetector)(
        detector=L(fcos_resnet50_fpn)(weights=None, weights_backbone=None, num_classes=80)
    ),
    teacher=teacher,
    teacher_checkpoint="checkpoints/vidt_small_50.pth",
    method=L(MoKD)(),
    taps=dict(patch=dict(student=dict(**pyramid, keep=[8, 16, 32, 64]), teacher="patch")),
)
objectives, balancer = mokd.objectives, mokd.balancer
train.output_dir = "output/vidt_small_to_torchvision_fcos"
