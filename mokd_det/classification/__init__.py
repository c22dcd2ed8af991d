"""Image classification on the same trainer, methods and balancers as detection."""

from mokd_det.classification.batch import ClassificationBatch
from mokd_det.classification.cifar_files import Cifar10, Cifar100
from mokd_det.classification.classifier import ImageClassifier
from mokd_det.classification.dataset import ArrayDataset, ImageDataset
from mokd_det.classification.digits import DigitImages
from mokd_det.classification.evaluator import ClassificationEvaluator
from mokd_det.classification.fashion_mnist import FashionMNIST
from mokd_det.classification.fashion_pairs import FashionMNIST32, FashionPairs
from mokd_det.classification.folder import ImageFolder
from mokd_det.classification.loader import (
    build_classification_test_loader,
    build_classification_train_loader,
)
from mokd_det.classification.small_image_transform import SmallImageTransform
from mokd_det.classification.synthetic_shapes import SyntheticShapes
from mokd_det.classification.torchvision_sets import TorchvisionImages

__all__ = [
    "ArrayDataset",
    "Cifar10",
    "Cifar100",
    "ClassificationBatch",
    "ClassificationEvaluator",
    "DigitImages",
    "FashionMNIST",
    "FashionMNIST32",
    "FashionPairs",
    "ImageClassifier",
    "ImageDataset",
    "ImageFolder",
    "SmallImageTransform",
    "SyntheticShapes",
    "TorchvisionImages",
    "build_classification_test_loader",
    "build_classification_train_loader",
]
