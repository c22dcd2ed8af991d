"""The ConvNeXt student with MoKD from a Swin teacher, the one that ``configs/quickstart/teacher.py`` trains."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.objectives import mokd
from ..quickstart.common import teacher
from .vidt_convnext import dataloader, lr_multiplier, optimizer, train
from .vidt_convnext import model as student

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint="output/quickstart/teacher/student_final.pth",
    method=L(MoKD)(),
)
objectives, balancer = mokd.objectives, mokd.balancer
train.output_dir = "output/examples/mokd_vidt_convnext"
