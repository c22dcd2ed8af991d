"""DeiT's schedule: 300 epochs of ImageNet-1k, AdamW, five epochs of warm-up, a cosine, averaged weights."""

from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from mokd_det.engine import get_timm_param_groups

epochs, warmup_epochs = 300, 5
iterations_per_epoch = 1281167 // 1024  # training images over the total batch size

train: Any = dict(
    max_iter=epochs * iterations_per_epoch,
    output_dir="output/deit",
    init_checkpoint="",  # weights to start from
    seed=42,
    device="auto",
    amp=dict(enabled=True, dtype="bfloat16"),
    clip_grad=None,
    accumulate=1,  # batches per optimiser step
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=iterations_per_epoch, max_to_keep=3),
    best=dict(metric="classification/top1", mode="max"),
    ema=dict(decay=0.99996),  # evaluated as ema_classification/top1
    eval_period=iterations_per_epoch,
    log_period=50,
    diagnostics_period=1000,
    conflict_period=500,
)

optimizer = L(torch.optim.AdamW)(
    params=L(get_timm_param_groups)(weight_decay=0.05),
    lr=1e-3,  # 5e-4 per 512 images
    betas=(0.9, 0.999),
)

# 1e-6 → 1e-3 → 1e-5, changing in every iteration
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=1e-2),
    warmup_factor=1e-3,
    warmup_length=warmup_epochs / epochs,
)
