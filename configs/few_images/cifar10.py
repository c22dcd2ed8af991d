"""CIFAR-10 (JPEG): a thin ResNet-8 with few images of each class, and the teacher of cifar10_teacher.py."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, NoDistillation

from ..common.classification import plain_sum
from .cifar10_teacher import dataloader, lr_multiplier, optimizer, resnet, training
from .cifar10_teacher import model as teacher
from .common import PER_CLASS

model = L(Distiller)(
    student=resnet(8, (8, 8, 16, 32)),
    teacher=teacher,
    teacher_checkpoint="output/few_images/cifar10_teacher/student_final.pth",
    method=L(NoDistillation)(),
    taps={},
)
objectives, balancer = plain_sum.objectives, plain_sum.balancer
dataloader.train.update(views=4, keep_views=True)
dataloader.train.dataset.per_class = PER_CLASS
train = training(300, "cifar10")
