"""COCO 2017 with DETR's augmentation, under $DETECTRON2_DATASETS/coco (default: datasets/coco)."""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.data import DetrDatasetMapper, build_test_loader, build_train_loader
from mokd_det.evaluation import CocoDetectionEvaluator

dataloader: Any = dict(
    train=L(build_train_loader)(
        dataset="coco_2017_train",
        mapper=L(DetrDatasetMapper)(is_train=True),
        total_batch_size=16,  # over all GPUs
        num_workers=4,  # per GPU
        seed=42,
    ),
    test=L(build_test_loader)(
        dataset="coco_2017_val",
        mapper=L(DetrDatasetMapper)(is_train=False),
        num_workers=4,
    ),
    evaluator=L(CocoDetectionEvaluator)(dataset_name="${..test.dataset}"),
)
