"""What the Fashion-MNIST runs share: the images padded to 32 pixels, a ResNet teacher and a smaller student.

30 epochs of SGD, minutes on a GPU. Choose on the validation images (`val`, 5,000 of the published training set), report
on `test`: `--eval-only dataloader.test.dataset.split=test`. Nothing was tuned here.
"""

from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from mokd_det.classification import (
    ClassificationEvaluator,
    ImageClassifier,
    build_classification_test_loader,
    build_classification_train_loader,
)
from mokd_det.classification.cifar import CifarResNet, resnet56
from mokd_det.classification.fashion_pairs import FashionMNIST32
from mokd_det.classification.small_image_transform import SmallImageTransform
from mokd_det.engine import get_timm_param_groups

BATCH, EPOCHS = 128, 30
PER_EPOCH = 55000 // BATCH  # the incomplete last batch is left out
MEAN, STD = (0.219,) * 3, (0.332,) * 3

teacher = L(ImageClassifier)(network=L(resnet56)(num_classes="${..num_classes}"), num_classes=10)
student = L(ImageClassifier)(network=L(CifarResNet)(depth=8, num_classes="${..num_classes}"), num_classes=10)

dataloader: Any = dict(
    train=L(build_classification_train_loader)(
        dataset=L(FashionMNIST32)(split="train"),
        transform=L(SmallImageTransform)(is_train=True, mean=MEAN, std=STD),
        total_batch_size=BATCH,
        num_workers=4,
        seed=0,
    ),
    test=L(build_classification_test_loader)(
        dataset=L(FashionMNIST32)(split="val"),
        transform=L(SmallImageTransform)(is_train=False, mean=MEAN, std=STD),
        batch_size=500,
        num_workers=2,
    ),
    evaluator=L(ClassificationEvaluator)(dataset="${..test.dataset}"),
)

train: Any = dict(
    max_iter=EPOCHS * PER_EPOCH,
    output_dir="output/fashion_mnist",
    seed=0,
    device="auto",
    checkpointer=dict(period=5 * PER_EPOCH, max_to_keep=2),
    eval_period=PER_EPOCH,
    log_period=50,
    diagnostics_period=PER_EPOCH,
)

optimizer = L(torch.optim.SGD)(
    params=L(get_timm_param_groups)(weight_decay=5e-4, decay_vectors=True),
    lr=0.1,
    momentum=0.9,
    nesterov=True,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_factor=0.01,
    warmup_length=1 / EPOCHS,
)
