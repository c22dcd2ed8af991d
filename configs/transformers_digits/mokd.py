"""A small D-FINE from a larger one, both pretrained without classes; in the comparison on a draw of few scenes."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, HungarianTokenMatching, MoKD

from ..common.objectives import mokd_transformers
from .common import dataloader, lr_multiplier, optimizer, pretrained, train

model = L(Distiller)(
    student=pretrained("student"),
    teacher=pretrained("teacher"),
    teacher_checkpoint="output/transformers_digits/teacher/student_final.pth",
    method=L(MoKD)(loss="similarity"),
    token_matching=L(HungarianTokenMatching)(),
    tap_pairing="common",
)
objectives, balancer = mokd_transformers.objectives, mokd_transformers.balancer
dataloader.train.total_batch_size = 16
optimizer.lr = 4e-3
train.max_iter = 300
train.output_dir = "output/transformers_digits/mokd"
