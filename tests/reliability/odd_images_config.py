"""A small student on images of every shape, resized as ViDT does but to few pixels."""

from detectron2.config import LazyCall as L

from mokd_det.data import (
    DetrDatasetMapper,
    build_test_loader,
    build_train_loader,
    detr_test_augmentation,
    detr_train_augmentation,
)
from mokd_det.evaluation import CocoDetectionEvaluator

from ...configs.quickstart.student import (  # noqa: F401
    balancer,
    lr_multiplier,
    model,
    objectives,
    optimizer,
    train,
)

dataloader = dict(
    train=L(build_train_loader)(
        dataset="odd_images",
        mapper=L(DetrDatasetMapper)(
            is_train=True,
            augmentation=L(detr_train_augmentation)(short_sides=[48, 64], max_long_side=256, crop_prob=0.0),
        ),
        total_batch_size=2,
        num_workers=0,
        seed=0,
    ),
    test=L(build_test_loader)(
        dataset="odd_images",
        mapper=L(DetrDatasetMapper)(
            is_train=False, augmentation=L(detr_test_augmentation)(short_side=64, max_long_side=256)
        ),
    ),
    evaluator=L(CocoDetectionEvaluator)(dataset_name="odd_images"),
)
