"""The pretrained student with MoKD from that teacher; in the comparison on a draw of 160 of its scenes."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.objectives import mokd
from .common import dataloader, lr_multiplier, optimizer, student, teacher, train

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint="output/few_scenes/teacher/student_final.pth",
    method=L(MoKD)(),
)
objectives, balancer = mokd.objectives, mokd.balancer
train.init_checkpoint = "output/few_scenes/pretrain/student_final.pth"
train.init_on_class_mismatch = "reinit"
train.output_dir = "output/few_scenes/mokd"
