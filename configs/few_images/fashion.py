"""Fashion-MNIST: a small transformer in DeiT's form with few images of each class, and a convolutional teacher."""

import torch
from detectron2.config import LazyCall as L
from timm.models.vision_transformer import VisionTransformer

from mokd_det.classification import ImageClassifier
from mokd_det.distillation import Distiller, NoDistillation
from mokd_det.engine import get_timm_param_groups

from ..common.classification import plain_sum
from .common import NUM_CLASSES, PER_CLASS, SIDE, lr_multiplier, training
from .fashion_teacher import dataloader
from .fashion_teacher import model as teacher

model = L(Distiller)(
    student=L(ImageClassifier)(
        network=L(VisionTransformer)(
            img_size=SIDE,
            patch_size=4,
            embed_dim=32,
            depth=3,
            num_heads=2,
            mlp_ratio=2.0,
            num_classes="${..num_classes}",
        ),
        num_classes=NUM_CLASSES,
    ),
    teacher=teacher,
    teacher_checkpoint="output/few_images/fashion_teacher/student_final.pth",
    method=L(NoDistillation)(),
    taps={},
)
objectives, balancer = plain_sum.objectives, plain_sum.balancer
dataloader.train.update(views=4, keep_views=True)
dataloader.train.dataset.per_class = PER_CLASS
optimizer = L(torch.optim.AdamW)(params=L(get_timm_param_groups)(weight_decay=0.05), lr=2e-3)
train = training(1600, "fashion")
train["clip_grad"] = dict(max_norm=1.0, norm_type=2.0)
