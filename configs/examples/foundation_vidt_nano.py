"""Features of a vision foundation model for ViDT-nano on COCO: a frozen ViT teaches its stride-32 map, RT-DETRv4's way.

``model.teacher.source`` is a local folder with a ViT of timm or transformers (DINOv2, DINOv3, …).
"""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, FoundationFeatures
from mokd_det.modeling import FeatureTeacher

from ..common.coco import dataloader
from ..common.objectives import fixed, mokd
from ..common.schedule import lr_multiplier, optimizer, train
from ..common.vidt import nano as student

model = L(Distiller)(
    student=student,
    teacher=L(FeatureTeacher)(source="pretrained/dinov3_vits16", stride=32),
    method=L(FoundationFeatures)(),
    taps=dict(patch=dict(student=dict(path="patch", strides=[32]), teacher="patch")),
)
# the published weight of the small models; balancer=mokd.balancer learns it
objectives, balancer = mokd.objectives, fixed(5)
train.init_checkpoint = "checkpoints/swin_nano_patch4_window7_224.pth"
train.output_dir = "output/foundation_vidt_nano"
