"""Your own data, in COCO format: docs/custom_data.md. Give the files on the command line:

data.train.json=FILE data.train.images=FOLDER data.val.json=FILE data.val.images=FOLDER
"""

from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from mokd_det.data import (
    DetrDatasetMapper,
    OwnData,
    build_test_loader,
    build_train_loader,
    detr_test_augmentation,
    detr_train_augmentation,
)
from mokd_det.engine.optimizer import get_vidt_param_groups
from mokd_det.evaluation import CocoDetectionEvaluator

data = L(OwnData)(
    train=dict(json="", images=""),
    val=dict(json="", images=""),  # data.val=null trains without evaluation
    total_batch_size=16,  # over all GPUs
    accumulate="${train.accumulate}",
    epochs=None,  # null: 50, but at least 6,000 and at most 370,000 iterations
    lr=1e-4,  # for 16 images per step; grows with their square root
    unlabeled=dict(images="", total_batch_size=None),  # images without annotations, for a distillation
    on_bad_box="error",  # "drop" leaves out boxes without area inside their image
)

# filled in from the files when this configuration is read
from_data = dict(
    num_classes=None,
    class_names=None,
    train_dataset=None,
    val_dataset=None,
    train_images=None,
    epochs=None,
    max_iter=None,
    eval_period=None,
    lr=None,
    teacher_classes=None,
    unlabeled_images=None,
    unlabeled_batch_size=None,
)

dataloader: Any = dict(
    train=L(build_train_loader)(
        dataset="${from_data.train_dataset}",
        mapper=L(DetrDatasetMapper)(
            is_train=True,
            augmentation=L(detr_train_augmentation)(
                flip_prob=0.5,  # 0 where left and right mean something (text, signs)
                short_sides=list(range(480, 801, 16)),
                max_long_side=1333,
                crop_prob=0.5,
            ),
        ),
        total_batch_size="${data.total_batch_size}",
        num_workers=4,  # per GPU
        seed=42,
    ),
    test=L(build_test_loader)(
        dataset="${from_data.val_dataset}",
        mapper=L(DetrDatasetMapper)(
            is_train=False, augmentation=L(detr_test_augmentation)(short_side=800, max_long_side=1333)
        ),
        num_workers=4,
    ),
    evaluator=L(CocoDetectionEvaluator)(dataset_name="${..test.dataset}"),
)

train: Any = dict(
    max_iter="${from_data.max_iter}",
    output_dir="output/custom",
    init_checkpoint="",
    init_keep_rows="all",  # your classes are not COCO's, even where there are 80 of them
    init_on_class_mismatch="reinit",  # class heads of another number of classes start afresh
    seed=42,
    device="auto",
    amp=dict(enabled=False, dtype="bfloat16"),
    clip_grad=dict(max_norm=0.1, norm_type=2.0),
    accumulate=1,  # batches per optimiser step
    checkpointer=dict(period="${from_data.eval_period}", max_to_keep=3),
    best=dict(metric="bbox/AP", mode="max"),
    eval_period="${from_data.eval_period}",
    log_period=20,
    diagnostics_period=1000,
)

optimizer = L(torch.optim.AdamW)(
    params=L(get_vidt_param_groups)(weight_decay=1e-4), lr="${from_data.lr}", betas=(0.9, 0.999)
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=1e-3), warmup_factor=0.01, warmup_length=0.02
)


def with_own_classes(model: Any) -> Any:
    """A student, or a model that is trained alone: it has the classes of your files."""
    model.num_classes = "${from_data.num_classes}"
    return model


def with_classes_of_its_file(model: Any) -> Any:
    """A teacher: it keeps the classes of its checkpoint. Without a loss, since it is not trained."""
    model.num_classes = "${from_data.teacher_classes}"
    model.criterion = None
    return model
