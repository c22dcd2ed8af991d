"""The configuration the tests of the tools run."""

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from mokd_det.balancing import Amortized
from mokd_det.engine import get_vidt_param_groups
from tests.engine.toy import ToyDetector, ToyEvaluator, ToyLoader, ToyTestLoader

model = L(ToyDetector)(width=8, dropout=0.3)
dataloader = dict(
    train=L(ToyLoader)(total_batch_size=4),
    test=L(ToyTestLoader)(length=3),
    evaluator=L(ToyEvaluator)(),
)
optimizer = L(torch.optim.AdamW)(params=L(get_vidt_param_groups)(weight_decay=1e-2), lr=1e-2)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0), warmup_factor=0.1, warmup_length=0.2
)
objectives = dict(cls=["loss_ce"], box=["loss_bbox", "loss_e*"])
balancer = L(Amortized)()
train = dict(
    max_iter=12,
    device="cpu",
    clip_grad=dict(max_norm=1.0, norm_type=2.0),
    checkpointer=dict(period=3),
    eval_period=6,
    log_period=2,
)
