"""A Hugging Face detector alone, on your own data: docs/transformers.md.

model.source=DIR data.train.json=FILE data.train.images=FOLDER data.val.json=FILE data.val.images=FOLDER
"""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from mokd_det.data import RandomChoice, RandomSizeCrop
from mokd_det.modeling import TransformersDetector

from ..common.objectives import alone, mokd_transformers
from .common import data, dataloader, from_data, lr_multiplier, optimizer, train

images = dict(side=640)  # every image becomes this square; a multiple of 32

model = L(TransformersDetector)(
    source="",  # a folder of save_pretrained
    class_names="${from_data.class_names}",
    num_classes="${from_data.num_classes}",
    on_class_mismatch="reinit",  # class heads of other classes start afresh; the log lists them
    image_size="${images.side}",
)

# Flip, and every second time a crop, as DETR's recipe; then the square.
dataloader.train.mapper.augmentation = [
    L(T.RandomFlip)(prob=0.5),  # 0 where left and right mean something (text, signs)
    L(RandomChoice)(first=[], second=[L(RandomSizeCrop)(min_size=384, max_size=600)], first_prob=0.5),
    L(T.Resize)(shape="${images.side}"),
]
dataloader.test.mapper.augmentation = [L(T.Resize)(shape="${images.side}")]

objectives, balancer = dict(task=mokd_transformers.objectives.task), alone.balancer
optimizer.params.backbone_lr = 1e-5
train.output_dir = "output/custom/transformers"
