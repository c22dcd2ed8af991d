"""The same student with MoKD from the teacher that ``configs/quickstart/teacher.py`` trains."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.objectives import mokd
from .common import dataloader, lr_multiplier, optimizer, student, teacher, train

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint="output/quickstart/teacher/student_final.pth",
    method=L(MoKD)(),
)
objectives, balancer = mokd.objectives, mokd.balancer
train.output_dir = "output/quickstart/mokd"
