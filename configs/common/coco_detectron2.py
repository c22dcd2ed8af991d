"""COCO 2017 as Detectron2's model zoo reads it: BGR, short side 640 to 800, flips."""

from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T

from .coco import dataloader

dataloader.train.mapper = L(DatasetMapper)(
    is_train=True,
    augmentations=[
        L(T.ResizeShortestEdge)(
            short_edge_length=(640, 672, 704, 736, 768, 800), sample_style="choice", max_size=1333
        ),
        L(T.RandomFlip)(),
    ],
    image_format="BGR",
)
dataloader.test.mapper = L(DatasetMapper)(
    is_train=False,
    augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
    image_format="BGR",
)
