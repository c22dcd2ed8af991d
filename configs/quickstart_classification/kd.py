"""The same student with plain distillation of the teacher's logits."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, LogitDistillation

from ..common.classification import plain_sum
from .common import dataloader, lr_multiplier, optimizer, student, teacher, train

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint="output/quickstart_classification/teacher/student_final.pth",
    method=L(LogitDistillation)(),
    taps=dict(logits="logits"),
)
objectives, balancer = plain_sum.objectives, plain_sum.balancer
train.output_dir = "output/quickstart_classification/kd"
