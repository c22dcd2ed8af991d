"""The teacher of forty_labels.py: as few_labels_teacher.py, at 160 pixels and for longer."""

from .few_labels_teacher import (
    balancer,
    data,
    dataloader,
    from_data,
    lr_multiplier,
    model,
    objectives,
    optimizer,
    train,
)

data.total_batch_size = 8
dataloader.train.mapper.augmentation.short_sides = [144, 160, 176]
dataloader.test.mapper.augmentation.short_side = 160
train.update(max_iter=900, eval_period=900, output_dir="output/forty_labels/teacher")
