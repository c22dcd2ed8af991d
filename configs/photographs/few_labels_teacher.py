"""The teacher of few_labels.py, twice as wide, with all labels; judged by BCCD's validation and test images at once."""

from ..common.objectives import alone
from .common import FOLDER, data, dataloader, detector, from_data, lr_multiplier, optimizer, train

model = detector(16, (1, 1, 1, 1), 128)
objectives, balancer = alone.objectives, alone.balancer

data.val.json = f"{FOLDER}/val_test.json"
dataloader.train.mapper.augmentation.short_sides = [112, 128, 144]
dataloader.test.mapper.augmentation.short_side = 128
optimizer.update(lr=2e-3, fused=True)
train.update(
    max_iter=400,
    eval_period=400,
    output_dir="output/few_labels/teacher",
    checkpointer=dict(period=100_000, max_to_keep=1),
    diagnostics_period=0,
)
