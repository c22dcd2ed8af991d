"""Small photographs of your own, or one of the sets that datasets/fetch.py brings: minutes to an hour on a CPU.

The models are the quick start's with more DET tokens, and read 160 to 240 pixels. As given: the blood cells of BCCD;
data.train.json=datasets/cards/train.json and so on for the cards.
"""

from typing import Any

from mokd_det.data import detr_test_augmentation, detr_train_augmentation

from ..custom.common import data, dataloader, from_data, lr_multiplier, train, with_own_classes
from ..quickstart.common import optimizer, vidt

FOLDER = "datasets/bccd"


def detector(dim: int, depths: tuple[int, ...], ffn_dim: int) -> Any:
    """A small ViDT with 50 DET tokens for the classes of the data."""
    model = with_own_classes(vidt(dim, depths, ffn_dim))
    model.backbone.num_det_tokens = 50
    model.topk = 100
    return model


student, teacher = detector(16, (1, 1, 1, 1), 128), detector(32, (2, 2, 2, 1), 256)

data.train = dict(json=f"{FOLDER}/train.json", images=f"{FOLDER}/images")
data.val = dict(json=f"{FOLDER}/val.json", images=f"{FOLDER}/images")
data.total_batch_size = 8
data.on_bad_box = "drop"  # two boxes of BCCD have no area

dataloader.train.mapper.augmentation.update(
    short_sides=[128, 144, 160, 176, 192], max_long_side=256, crop_prob=0.0
)
dataloader.test.mapper.augmentation.update(short_side=160, max_long_side=256)
dataloader.train.num_workers = dataloader.test.num_workers = 0

optimizer.lr = 1e-3
train.update(
    max_iter=1500,
    output_dir="output/photographs",
    clip_grad=dict(max_norm=1.0, norm_type=2.0),
    eval_period=250,
    checkpointer=dict(period=500, max_to_keep=1),
    diagnostics_period=250,
    best=None,
)
