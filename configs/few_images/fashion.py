"""Fashion-MNIST: a small transformer in DeiT's form with few images of each class, and a convolutional teacher."""

import torch
from detectron2.config import LazyCall as L

from mokd_det.engine import get_timm_param_groups

from ..quickstart_classification.common import student
from .cifar10 import balancer, model, objectives
from .common import PER_CLASS, lr_multiplier, training
from .fashion_teacher import dataloader
from .fashion_teacher import model as teacher

model.student, model.teacher = student, teacher
model.teacher_checkpoint = "output/few_images/fashion_teacher/student_final.pth"
dataloader.train.update(views=4, keep_views=True)
dataloader.train.dataset.per_class = PER_CLASS
optimizer = L(torch.optim.AdamW)(params=L(get_timm_param_groups)(weight_decay=0.05), lr=2e-3)
train = training(1600, "fashion")
train["clip_grad"] = dict(max_norm=1.0, norm_type=2.0)
