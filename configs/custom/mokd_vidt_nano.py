"""MoKD: ViDT-nano from ViDT-base, on your own data."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.objectives import mokd
from ..common.vidt import base as teacher
from ..common.vidt import nano as student
from .common import (
    data,
    dataloader,
    from_data,
    lr_multiplier,
    optimizer,
    train,
    with_classes_of_its_file,
    with_own_classes,
)

model = L(Distiller)(
    student=with_own_classes(student),
    teacher=with_classes_of_its_file(teacher),
    teacher_checkpoint="checkpoints/vidt_base_50.pth",  # with any classes: only its tokens are used
    method=L(MoKD)(),
)
objectives, balancer = mokd.objectives, mokd.balancer
train.init_checkpoint = "checkpoints/vidt_nano_50.pth"  # or ImageNet weights of the backbone
train.output_dir = "output/custom/mokd_vidt_nano"
