"""CrossKD between two FCOS, from the teacher that ``fcos_teacher.py`` trains."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import CrossKD, Distiller

from ..common.objectives import fixed
from ..common.objectives import mokd_convolutional as mokd
from .common import dataloader, fcos, lr_multiplier, optimizer, pyramid, train

model = L(Distiller)(
    student=fcos(8, depth=1),
    teacher=fcos(16, depth=2),
    teacher_checkpoint="output/digits_pairs/fcos_teacher/student_final.pth",
    method=L(CrossKD)(),
    taps=dict(patch=pyramid),
)
objectives, balancer = mokd.objectives, fixed(1)
train.max_iter = 100
train.output_dir = "output/digits_pairs/cross_kd"
