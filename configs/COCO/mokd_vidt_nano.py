"""MoKD: ViDT-nano from ViDT-base on COCO, 50 epochs, batch 16."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.coco import dataloader
from ..common.objectives import mokd
from ..common.schedule import lr_multiplier, optimizer, train
from ..common.vidt import base as teacher
from ..common.vidt import nano as student

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint="checkpoints/vidt_base_50.pth",
    method=L(MoKD)(),
)
objectives, balancer = mokd.objectives, mokd.balancer
train.init_checkpoint = (
    "checkpoints/swin_nano_patch4_window7_224.pth"  # ImageNet weights of the student's backbone
)
train.output_dir = "output/mokd_vidt_nano"
