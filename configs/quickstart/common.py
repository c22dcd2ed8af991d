"""What the quick-start runs share: the bundled digits, small ViDTs, a short schedule.

DETR-like detectors learn slowly. Four options that are not ViDT's let these learn within minutes on a CPU: a
convolutional stem, an IoU-aware class loss, reference points that start on a grid, and no dropout. GroupNorm has groups
of 8 channels, as many as in ViDT.
"""

from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from mokd_det.data import DetrDatasetMapper, build_test_loader, build_train_loader
from mokd_det.engine.optimizer import get_vidt_param_groups
from mokd_det.evaluation import CocoDetectionEvaluator
from mokd_det.modeling import DeformableTransformer, HungarianMatcher, InputProjection, SetCriterion, ViDT
from mokd_det.modeling.backbone import SwinRAM


def vidt(dim: int, depths: tuple[int, ...], ffn_dim: int) -> Any:
    """A small ViDT for 64-pixel images: windows of 4 cells, 16 DET tokens, 64 channels, 2 decoder layers."""
    return L(ViDT)(
        backbone=L(SwinRAM)(
            embed_dim=dim,
            depths=depths,
            num_heads=(4, 4, 4, 4),
            window_size=4,
            num_det_tokens=16,
            pos_channels=64,
            stem="conv",
        ),
        neck=L(InputProjection)(norm_groups=8),
        transformer=L(DeformableTransformer)(
            embed_dim=64,
            num_heads=4,
            ffn_dim=ffn_dim,
            num_layers=2,
            dropout=0.0,
            num_queries="${..backbone.num_det_tokens}",
            reference_init="grid",
        ),
        num_classes=10,
        criterion=L(SetCriterion)(
            num_classes="${..num_classes}", matcher=L(HungarianMatcher)(), class_loss="iou_aware_bce"
        ),
        topk=50,
    )


student, teacher = vidt(16, (1, 1, 1, 1), 128), vidt(32, (2, 2, 2, 1), 256)

dataloader: Any = dict(
    train=L(build_train_loader)(
        dataset="digits_train",
        mapper=L(DetrDatasetMapper)(is_train=True, augmentation=[]),  # digits must not be flipped
        total_batch_size=16,
        num_workers=0,
        seed=0,
    ),
    test=L(build_test_loader)(
        dataset="digits_val", mapper=L(DetrDatasetMapper)(is_train=False, augmentation=[]), batch_size=20
    ),
    evaluator=L(CocoDetectionEvaluator)(dataset_name="${..test.dataset}"),
)

train: Any = dict(
    max_iter=600,
    output_dir="output/quickstart",
    seed=0,
    device="auto",
    clip_grad=dict(max_norm=1.0, norm_type=2.0),
    checkpointer=dict(period=200, max_to_keep=2),
    eval_period=200,
    log_period=20,
    diagnostics_period=100,
    conflict_period=20,
)

optimizer = L(torch.optim.AdamW)(
    params=L(get_vidt_param_groups)(weight_decay=1e-2), lr=2e-3, betas=(0.9, 0.98)
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01), warmup_factor=0.02, warmup_length=0.04
)
