"""Fashion-MNIST: the teacher, a thin ResNet-8 with 500 images of each class."""

from mokd_det.classification import FashionMNIST32

from ..common.classification import alone
from .cifar10_teacher import optimizer, resnet
from .common import loaders, lr_multiplier, training

model = resnet(8, (16, 16, 32, 64))
objectives, balancer = alone.objectives, alone.balancer
dataloader = loaders(FashionMNIST32, 500, mean=(0.219,) * 3, std=(0.332,) * 3)
dataloader["train"].update(views=None, keep_views=False)
train = training(300, "fashion_teacher")
