"""The same student with MoKD: features in a common subspace and logits, against the task."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.classification import mokd, with_logits
from .common import dataloader, lr_multiplier, optimizer, student, teacher, train

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint="output/quickstart_classification/teacher/student_final.pth",
    method=with_logits(L(MoKD)(task="classification")),
    taps=dict(pooled="pooled", logits="logits"),
)
objectives, balancer = mokd.objectives, mokd.balancer
train.output_dir = "output/quickstart_classification/mokd"
