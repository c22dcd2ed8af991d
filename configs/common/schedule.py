"""ViDT's schedule: 50 epochs of COCO, AdamW, a cosine that changes once per epoch."""

from typing import Any

import torch
from detectron2.config import LazyCall as L

from mokd_det.engine.lr_schedule import EpochCosineParamScheduler
from mokd_det.engine.optimizer import get_vidt_param_groups

epochs = 50
iterations_per_epoch = (
    118287 // 16
)  # training images over the total batch size; the incomplete batch is dropped

train: Any = dict(
    max_iter=epochs * iterations_per_epoch,
    output_dir="output/vidt",
    init_checkpoint="",  # weights to start from: ViDT, Swin (Microsoft's or timm's) or a student of ours
    seed=42,
    device="auto",
    amp=dict(enabled=False, dtype="bfloat16"),
    clip_grad=dict(max_norm=0.1, norm_type=2.0),
    accumulate=1,  # batches per optimiser step
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=iterations_per_epoch, max_to_keep=3),
    best=dict(metric="bbox/AP", mode="max"),
    eval_period=iterations_per_epoch,
    log_period=50,
    diagnostics_period=1000,
    conflict_period=500,
)

optimizer = L(torch.optim.AdamW)(
    params=L(get_vidt_param_groups)(weight_decay=1e-4),
    lr=1e-4,
    betas=(0.9, 0.999),
)

lr_multiplier = L(EpochCosineParamScheduler)(num_epochs=epochs, end_value=1e-3)
