"""ImageNet-1k with the augmentation that VkD's code uses and MoKD's text refers to.

Under $DETECTRON2_DATASETS/imagenet (default: datasets/imagenet)."""

import os
from typing import Any

from detectron2.config import LazyCall as L
from timm.data import create_transform

from mokd_det.classification import (
    ClassificationEvaluator,
    ImageFolder,
    build_classification_test_loader,
    build_classification_train_loader,
)

root = os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "imagenet")

dataloader: Any = dict(
    train=L(build_classification_train_loader)(
        dataset=L(ImageFolder)(root=os.path.join(root, "train")),
        transform=L(create_transform)(
            input_size=224,
            is_training=True,
            # 3-Augment: grey, solarise or blur, then jitter. DeiT's own: docs/classification.md.
            auto_augment="3a",
            color_jitter=0.3,
            interpolation="bicubic",
            re_prob=0.0,  # random erasing
            re_mode="pixel",
        ),
        total_batch_size=1024,  # over all GPUs
        num_workers=8,  # per GPU
        seed=42,
        mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5),
        label_smoothing=0.1,
        repeated_augmentation=1,
    ),
    test=L(build_classification_test_loader)(
        dataset=L(ImageFolder)(root=os.path.join(root, "val")),
        transform=L(create_transform)(input_size=224, interpolation="bicubic", crop_pct=0.875),
        batch_size=256,  # per GPU
        num_workers=8,
    ),
    evaluator=L(ClassificationEvaluator)(dataset="${..test.dataset}", per_class=False),
)
