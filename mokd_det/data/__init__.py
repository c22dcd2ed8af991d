"""The data room: data sets by name, checks, augmentation, loaders. Importing it registers the bundled data sets."""

from mokd_det.data.builtin import datasets_root, register_digits
from mokd_det.data.catalog import check_dataset_dicts, coco_source, load_dataset_dicts, without_classes
from mokd_det.data.coco_format import load_coco_format, register_coco_format
from mokd_det.data.coco_source import CocoFormatSource
from mokd_det.data.dataset_check import IMAGE_CHECKS, DatasetReport, check_dataset
from mokd_det.data.dataset_report import report_as_json, report_as_text
from mokd_det.data.detr_mapper import DetrDatasetMapper
from mokd_det.data.loader import TrainLoader, build_test_loader, build_train_loader
from mokd_det.data.own_data import OwnData, OwnDataFacts
from mokd_det.data.sample_images import SampleImage, sample_images
from mokd_det.data.transforms import (
    RandomChoice,
    RandomSizeCrop,
    ShortSideResize,
    detr_test_augmentation,
    detr_train_augmentation,
    resized_shape,
)

__all__ = [
    "IMAGE_CHECKS",
    "CocoFormatSource",
    "DatasetReport",
    "DetrDatasetMapper",
    "OwnData",
    "OwnDataFacts",
    "RandomChoice",
    "RandomSizeCrop",
    "SampleImage",
    "ShortSideResize",
    "TrainLoader",
    "build_test_loader",
    "build_train_loader",
    "check_dataset",
    "check_dataset_dicts",
    "coco_source",
    "datasets_root",
    "detr_test_augmentation",
    "detr_train_augmentation",
    "load_coco_format",
    "load_dataset_dicts",
    "register_coco_format",
    "register_digits",
    "report_as_json",
    "report_as_text",
    "resized_shape",
    "sample_images",
    "without_classes",
]
