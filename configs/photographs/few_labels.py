"""A tenth of BCCD's labels (docs/results.md): 20 photographs drawn from the 205, and a teacher that has all labels."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.objectives import mokd
from .common import detector
from .few_labels_teacher import data, dataloader, from_data, lr_multiplier, optimizer, train
from .few_labels_teacher import model as teacher

model = L(Distiller)(
    student=detector(8, (1, 1, 1, 1), 128),
    teacher=teacher,
    teacher_checkpoint="output/few_labels/teacher/student_final.pth",
    method=L(MoKD)(loss="similarity"),
)
objectives, balancer = mokd.objectives, mokd.balancer

data.total_batch_size = 4
dataloader.train.update(draw=dict(count=20, seed=0), views=16)
train.update(max_iter=300, eval_period=300, output_dir="output/few_labels/mokd")
