"""A hundred classes that need no download, in the place of CIFAR-100: two Fashion-MNIST items side by side.

Small networks, 10,000 images and 400 iterations: a run takes half a minute to two minutes on one CPU core. The images
must not be flipped, since left and right make the class. The methods' weights are those published for ResNet-20 from
ResNet-56, the pair that is most like this one; CRD has as many negatives per image of the set as there.
"""

from typing import Any

import torch
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

from mokd_det.classification import (
    ClassificationEvaluator,
    FashionPairs,
    SmallImageTransform,
    build_classification_test_loader,
    build_classification_train_loader,
)
from mokd_det.classification.cifar import CifarResNet
from mokd_det.engine import get_timm_param_groups

from ..common.cifar_networks import classifier

# 0.023 and 0.18 million parameters
networks = dict(
    student=dict(model=classifier(CifarResNet, depth=8, widths=(8, 8, 16, 32))),
    teacher=dict(model=classifier(CifarResNet, depth=14, widths=(16, 16, 32, 64))),
)

pair: Any = dict(
    student="student",
    teacher="teacher",
    teacher_checkpoint="output/fashion_pairs/teacher/student_final.pth",
    num_classes=100,
    train_images=10000,
    negatives=3277,
    dkd_beta=2.0,
    review=0.6,
    review_pp=dict(kd=1.2, nd=1.0),
    kd_pp=dict(kd=1.0, nd=2.0),
    dkd_pp=dict(alpha=2.5, beta=4.0, nd=3.5),
    student_pre="pre",
    middle_stride=2,
)
warmup_epochs: Any = dict(value=0)  # a twelfth of the training, as published, would be less than an epoch


def transform(is_train: bool) -> Any:
    """Random crops, no flips; mean and deviation of the training images."""
    return L(SmallImageTransform)(is_train=is_train, mean=(0.29,) * 3, std=(0.33,) * 3, flip=False)


dataloader: Any = dict(
    train=L(build_classification_train_loader)(
        dataset=L(FashionPairs)(split="train", per_class=100),
        transform=transform(is_train=True),
        total_batch_size=64,
        num_workers=0,
        seed=0,
    ),
    test=L(build_classification_test_loader)(
        dataset=L(FashionPairs)(split="val", per_class=25),
        transform=transform(is_train=False),
        batch_size=100,
    ),
    evaluator=L(ClassificationEvaluator)(dataset="${..test.dataset}", per_class=False),
    # once over the training images, for methods that need class centres
    preparation=L(build_classification_test_loader)(
        dataset="${..train.dataset}", transform="${..test.transform}", batch_size=100
    ),
)

train: Any = dict(
    max_iter=400,
    output_dir="output/fashion_pairs",
    seed=0,
    device="auto",
    checkpointer=dict(period=250, max_to_keep=2),
    best=dict(metric="classification/top1", mode="max"),
    eval_period=100,
    log_period=20,
    diagnostics_period=100,
)

optimizer = L(torch.optim.SGD)(
    params=L(get_timm_param_groups)(weight_decay=5e-4, decay_vectors=True), lr=0.05, momentum=0.9
)

# as on CIFAR-100, at the same shares of the training
lr_multiplier = L(MultiStepParamScheduler)(
    values=[1.0, 0.1, 0.01, 0.001], milestones=[150, 180, 210], num_updates=240
)
