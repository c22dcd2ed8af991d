"""CIFAR-100 with the augmentation and the schedules of the distillation literature, under $DETECTRON2_DATASETS
(default: datasets), folder cifar-100-python; ``choice.recipe`` chooses one of two.

ReviewKD's and KD++'s, the default, because MoKD's table of CIFAR-100 compares with these: batch 128, rate 0.1, Nesterov
momentum. RepDistiller's: batch 64, rate 0.05, as the numbers of FitNet, RKD, PKT, CRD and KD were made; they are those
of the last epoch. Both: 240 epochs of SGD, the rate divided by 10 three times, weight decay on everything. The last
weights are in student_final.pth, the best by the test images (which the literature uses so) in best/.
"""

from typing import Any

import torch
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig

from mokd_det.classification import (
    Cifar100,
    ClassificationEvaluator,
    SmallImageTransform,
    build_classification_test_loader,
    build_classification_train_loader,
)
from mokd_det.engine import get_timm_param_groups

TRAIN_IMAGES, EPOCHS = 50000, 240


def schedule(batch_size: int, decay_epochs: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """A schedule; the incomplete last batch of an epoch is left out."""
    per_epoch = TRAIN_IMAGES // batch_size
    milestones = [epoch * per_epoch for epoch in decay_epochs]
    lengths = dict(iterations_per_epoch=per_epoch, max_iter=EPOCHS * per_epoch, milestones=milestones)
    return dict(batch_size=batch_size, **lengths, **more)


recipes = dict(
    RepDistiller=schedule(
        batch_size=64,
        decay_epochs=(150, 180, 210),
        rate=dict(resnet=0.05, mobile=0.01),
        nesterov=False,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    ),
    ReviewKD=schedule(
        batch_size=128,
        decay_epochs=(151, 181, 211),  # its code looks at the epoch's number after the epoch
        rate=dict(resnet=0.1, mobile=0.02),
        nesterov=True,
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    ),
)

choice: Any = dict(recipe="ReviewKD")
recipe = DictConfig("${recipes.${choice.recipe}}")
warmup_epochs: Any = dict(value=20)  # of DKD and ReviewKD


def transform(is_train: bool) -> Any:
    """Normalised by the recipe's numbers."""
    return L(SmallImageTransform)(is_train=is_train, mean="${recipe.mean}", std="${recipe.std}")


dataloader: Any = dict(
    train=L(build_classification_train_loader)(
        dataset=L(Cifar100)(split="train"),
        transform=transform(is_train=True),
        total_batch_size="${recipe.batch_size}",  # over all GPUs
        num_workers=4,  # per GPU
        seed=0,
    ),
    test=L(build_classification_test_loader)(
        dataset=L(Cifar100)(split="test"), transform=transform(is_train=False), batch_size=256, num_workers=4
    ),
    evaluator=L(ClassificationEvaluator)(dataset="${..test.dataset}", per_class=False),
    # once over the training images, for methods that need class centres
    preparation=L(build_classification_test_loader)(
        dataset="${..train.dataset}", transform="${..test.transform}", batch_size=256, num_workers=4
    ),
)

train: Any = dict(
    max_iter="${recipe.max_iter}",
    output_dir="output/cifar100",
    seed=0,
    device="auto",
    amp=dict(enabled=False, dtype="bfloat16"),
    checkpointer=dict(period=10000, max_to_keep=2),
    best=dict(metric="classification/top1", mode="max"),
    eval_period="${recipe.iterations_per_epoch}",
    log_period=50,
    diagnostics_period=1000,
    conflict_period=0,
)

optimizer = L(torch.optim.SGD)(
    params=L(get_timm_param_groups)(weight_decay=5e-4, decay_vectors=True),
    lr=0.05,
    momentum=0.9,
    nesterov="${recipe.nesterov}",
)

lr_multiplier = L(MultiStepParamScheduler)(
    values=[1.0, 0.1, 0.01, 0.001], milestones="${recipe.milestones}", num_updates="${recipe.max_iter}"
)
