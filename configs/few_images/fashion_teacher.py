"""Fashion-MNIST: the teacher, a thin ResNet-8 with 500 images of each class."""

import torch
from detectron2.config import LazyCall as L

from mokd_det.classification import FashionMNIST32
from mokd_det.engine import get_timm_param_groups

from ..common.classification import alone
from .cifar10_teacher import resnet
from .common import loaders, lr_multiplier, training

model = resnet(8, (16, 16, 32, 64))
objectives, balancer = alone.objectives, alone.balancer
dataloader = loaders(FashionMNIST32, 500, mean=(0.219,) * 3, std=(0.332,) * 3)
dataloader["train"].update(views=None, keep_views=False)
optimizer = L(torch.optim.SGD)(
    params=L(get_timm_param_groups)(weight_decay=5e-4, decay_vectors=True),
    lr=0.1,
    momentum=0.9,
    nesterov=True,
)
train = training(300, "fashion_teacher")
