"""LD between two D-FINEs, from the teacher that ``d_fine_teacher.py`` trains."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import LD, Distiller

from ..common.objectives import fixed
from ..common.objectives import mokd_transformers as mokd
from .common import d_fine, dataloader, lr_multiplier, optimizer, train

model = L(Distiller)(
    student=d_fine(32, layers=2),
    teacher=d_fine(64, layers=2),
    teacher_checkpoint="output/digits_pairs/d_fine_teacher/student_final.pth",
    method=L(LD)(),
    taps=dict(corners="corners", logits="logits"),
    token_matching="hungarian",
)
objectives, balancer = mokd.objectives, fixed(0.25)
train.max_iter = 100
train.output_dir = "output/digits_pairs/ld"
