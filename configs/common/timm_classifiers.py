"""timm's classifiers for the 1000 classes of ImageNet: DeiT students and their RegNetY teacher."""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.classification import ImageClassifier
from mokd_det.modeling import create_timm_model


def timm_classifier(name: str, **options: Any) -> Any:
    """A timm model by name; ``options`` are ``timm.create_model``'s, and ``weights`` or ``download``."""
    return L(ImageClassifier)(
        network=L(create_timm_model)(name=name, num_classes="${..num_classes}", **options), num_classes=1000
    )


def deit(name: str) -> Any:
    """A DeiT with DeiT's drop path, from random weights."""
    return timm_classifier(name, drop_path_rate=0.1)


# without a distillation token, and with one
tiny, tiny_distilled = deit("deit_tiny_patch16_224"), deit("deit_tiny_distilled_patch16_224")
small, small_distilled = deit("deit_small_patch16_224"), deit("deit_small_distilled_patch16_224")

# DeiT's own teacher. Without the tag, timm's default is one that was trained on ImageNet-12k (sw_in12k).
regnety_160 = timm_classifier("regnety_160.deit_in1k")
regnety_160_checkpoint = "checkpoints/regnety_160.deit_in1k.safetensors"
