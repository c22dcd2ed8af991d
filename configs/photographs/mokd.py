"""The small detector with MoKD from the one that teacher.py trains."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.objectives import mokd
from .common import data, dataloader, from_data, lr_multiplier, optimizer, student, teacher, train

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint="output/photographs/teacher/student_final.pth",
    method=L(MoKD)(loss="similarity"),
)
objectives, balancer = mokd.objectives, mokd.balancer
train.output_dir = "output/photographs/mokd"
