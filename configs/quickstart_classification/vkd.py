"""The same student with VkD: orthogonally projected features and logits, in the published plain sum."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Combined, Distiller, LogitDistillation, VkD

from ..common.classification import plain_sum
from .common import dataloader, lr_multiplier, optimizer, student, teacher, train

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint="output/quickstart_classification/teacher/student_final.pth",
    method=L(Combined)(
        parts=dict(kd=L(VkD)(task="classification"), kl=L(LogitDistillation)()),
        taps=dict(kd=["pooled"], kl=["logits"]),
    ),
    taps=dict(pooled="pooled", logits="logits"),
)
objectives, balancer = plain_sum.objectives, plain_sum.balancer
train.output_dir = "output/quickstart_classification/vkd"
