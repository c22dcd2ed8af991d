"""Detectron2's 1x schedule for convolutional detectors: 90,000 iterations of SGD with two steps."""

from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from mokd_det.engine.optimizer import get_vidt_param_groups

train: Any = dict(
    max_iter=90000,
    output_dir="output/detectors",
    init_checkpoint="",  # weights of the whole student, by its own names
    seed=42,
    device="auto",
    amp=dict(enabled=False, dtype="bfloat16"),
    clip_grad=dict(max_norm=10.0, norm_type=2.0),
    accumulate=1,
    checkpointer=dict(period=5000, max_to_keep=3),
    best=dict(metric="bbox/AP", mode="max"),
    eval_period=5000,
    log_period=20,
    diagnostics_period=1000,
)

optimizer = L(torch.optim.SGD)(params=L(get_vidt_param_groups)(weight_decay=1e-4), lr=0.01, momentum=0.9)

lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
