"""What the classification quick start's runs share: scikit-learn's digits, a CNN teacher, a tiny transformer.

Chosen on the validation images (300 of the 1,797; the test images took no part): the networks, so that the student
alone stays well behind its teacher; 16 pixels, 30 training images per class, learning rate and iterations.
"""

from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from timm.data import create_transform
from timm.models.vision_transformer import VisionTransformer

from mokd_det.classification import (
    ClassificationEvaluator,
    DigitImages,
    ImageClassifier,
    build_classification_test_loader,
    build_classification_train_loader,
)
from mokd_det.classification.cifar import resnet20
from mokd_det.classification.subset import FewPerClass
from mokd_det.engine import get_timm_param_groups

IMAGE_SIZE, MEAN, STD = 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

teacher = L(ImageClassifier)(network=L(resnet20)(num_classes="${..num_classes}"), num_classes=10)

student = L(ImageClassifier)(
    network=L(VisionTransformer)(
        img_size=IMAGE_SIZE,
        patch_size=4,
        embed_dim=32,
        depth=3,
        num_heads=2,
        mlp_ratio=2.0,
        num_classes="${..num_classes}",
    ),
    num_classes=10,
)

dataloader: Any = dict(
    train=L(build_classification_train_loader)(
        dataset=L(FewPerClass)(dataset=L(DigitImages)(split="train", size=IMAGE_SIZE), per_class=30),
        transform=L(create_transform)(
            input_size=IMAGE_SIZE,
            is_training=True,
            scale=(0.7, 1.0),
            ratio=(0.8, 1.25),
            hflip=0.0,  # digits must not be flipped
            color_jitter=None,
            interpolation="bilinear",
            mean=MEAN,
            std=STD,
        ),
        total_batch_size=32,
        num_workers=0,
        seed=0,
    ),
    test=L(build_classification_test_loader)(
        dataset=L(DigitImages)(split="val", size=IMAGE_SIZE),
        transform=L(create_transform)(input_size=IMAGE_SIZE, crop_pct=1.0, mean=MEAN, std=STD),
        batch_size=100,
    ),
    evaluator=L(ClassificationEvaluator)(dataset="${..test.dataset}"),
)

train: Any = dict(
    max_iter=600,
    output_dir="output/quickstart_classification",
    seed=0,
    device="auto",
    clip_grad=dict(max_norm=1.0, norm_type=2.0),
    checkpointer=dict(period=200, max_to_keep=2),
    eval_period=100,
    log_period=20,
    diagnostics_period=100,
    conflict_period=20,
)

optimizer = L(torch.optim.AdamW)(
    params=L(get_timm_param_groups)(weight_decay=0.05), lr=4e-3, betas=(0.9, 0.999)
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01), warmup_factor=0.02, warmup_length=0.1
)
