"""MoKD of a distilled transformer from a convolutional network, with everything that makes resuming hard."""

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from mokd_det.balancing import Amortized
from mokd_det.classification import ImageClassifier
from mokd_det.distillation import Combined, Distiller, LogitDistillation, MoKD
from mokd_det.engine import get_timm_param_groups
from tests.classification.toy import (
    ToyClassificationEvaluator,
    ToyClassificationLoader,
    ToyClassificationTestLoader,
    ToyCnn,
    toy_vit,
)

model = L(Distiller)(
    student=L(ImageClassifier)(network=L(toy_vit)(drop_path_rate=0.3), num_classes=5),
    teacher=L(ImageClassifier)(network=L(ToyCnn)(), num_classes=5),
    method=L(Combined)(
        parts=dict(kd=L(MoKD)(task="classification"), kl=L(LogitDistillation)()),
        taps=dict(kd=["pooled"], kl=["logits"]),
    ),
    taps=dict(logits=dict(student="dist_logits", teacher="logits"), pooled="pooled"),
)
dataloader = dict(
    train=L(ToyClassificationLoader)(total_batch_size=4),
    test=L(ToyClassificationTestLoader)(length=3),
    evaluator=L(ToyClassificationEvaluator)(),
)
optimizer = L(torch.optim.AdamW)(params=L(get_timm_param_groups)(weight_decay=0.05), lr=1e-2)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0), warmup_factor=0.1, warmup_length=0.2
)
objectives = dict(kl=["loss_distill_kl_*"], kd=["loss_distill_kd_*"], cls=["loss_cls"])
balancer = L(Amortized)()
train = dict(
    max_iter=12,
    device="cpu",
    clip_grad=dict(max_norm=1.0, norm_type=2.0),
    ema=dict(decay=0.8),
    checkpointer=dict(period=3),
    eval_period=6,
    log_period=2,
)
