"""A small RT-DETRv2 from random weights: docs/transformers.md."""

from ..transformers_digits.common import detector
from .d_fine import (
    balancer,
    data,
    dataloader,
    from_data,
    images,
    lr_multiplier,
    model,
    objectives,
    optimizer,
    train,
)

model.source = detector("rt_detr_v2", 32, 2, levels=3, decoder_n_levels=3, num_queries=50).source
train.output_dir = "output/photographs/rt_detr_v2"
