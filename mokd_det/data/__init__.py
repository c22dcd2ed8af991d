"""The data room: data sets by name, checks, augmentation, loaders. Importing it registers the bundled data
sets."""

from mokd_det.data.builtin import datasets_root, register_digits
from mokd_det.data.catalog import check_dataset_dicts, load_dataset_dicts
from mokd_det.data.coco_format import CocoFormatSource, load_coco_format, register_coco_format
from mokd_det.data.detr_mapper import DetrDatasetMapper
from mokd_det.data.loader import TrainLoader, build_test_loader, build_train_loader
from mokd_det.data.transforms import (
    RandomChoice,
    RandomSizeCrop,
    ShortSideResize,
    detr_test_augmentation,
    detr_train_augmentation,
    resized_shape,
)

__all__ = [
    "CocoFormatSource",
    "DetrDatasetMapper",
    "RandomChoice",
    "RandomSizeCrop",
    "ShortSideResize",
    "TrainLoader",
    "build_test_loader",
    "build_train_loader",
    "check_dataset_dicts",
    "datasets_root",
    "detr_test_augmentation",
    "detr_train_augmentation",
    "load_coco_format",
    "load_dataset_dicts",
    "register_coco_format",
    "register_digits",
    "resized_shape",
]
