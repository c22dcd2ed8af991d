"""Small classifiers, batches and a recipe for every method, to train two steps of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mokd_det.classification import ClassificationBatch, ImageClassifier
from mokd_det.classification.cifar import CifarResNet
from mokd_det.distillation import (
    CRD,
    DKD,
    NKD,
    OFD,
    PKT,
    RKD,
    SRD,
    USKD,
    Combined,
    Distiller,
    FitNet,
    HardDistillation,
    LogitDistillation,
    Manifold,
    MaskedKD,
    Method,
    MoKD,
    NoDistillation,
    NormDirection,
    ProjectorMatching,
    ReviewKD,
    TokenMatching,
    VkD,
)

CLASSES, IMAGES, SIZE = 5, 24, 16


def convolutional(width: int = 4) -> ImageClassifier:
    """A CIFAR ResNet of three blocks."""
    widths = (width, width, 2 * width, 4 * width)
    return ImageClassifier(CifarResNet(8, widths, CLASSES), num_classes=CLASSES)


def transformer(width: int = 8, class_token: bool = True) -> ImageClassifier:
    """A ViT of two blocks on 16 patches."""
    vit = VisionTransformer(
        img_size=SIZE,
        patch_size=4,
        embed_dim=width,
        depth=2,
        num_heads=2,
        num_classes=CLASSES,
        class_token=class_token,
        global_pool="token" if class_token else "avg",
    )
    return ImageClassifier(vit, num_classes=CLASSES)


@dataclass(frozen=True)
class Recipe:
    """How a method is tried: its taps, and its models' kind."""

    method: Callable[[], Method]
    taps: dict[str, Any]
    models: Callable[..., ImageClassifier] = convolutional
    teacher: bool = True


POOLED, LOGITS = {"pooled": "pooled"}, {"logits": "logits"}
REVIEW = {"maps": {"student": "maps", "teacher": "pre"}, **POOLED}
ATTENTION = {"path": "network.blocks.1.attn.qkv", "channels": 24, "num_tokens": 17}

RECIPES: dict[str, Recipe] = {
    "none": Recipe(NoDistillation, {}),
    "kd": Recipe(lambda: LogitDistillation(4.0), LOGITS),
    "hard": Recipe(HardDistillation, LOGITS),
    "token_matching": Recipe(TokenMatching, LOGITS),
    "projector": Recipe(ProjectorMatching, POOLED),
    "vkd": Recipe(lambda: VkD(task="classification"), POOLED),
    "mokd": Recipe(lambda: MoKD(task="classification"), POOLED),
    "dkd": Recipe(lambda: DKD(warmup_epochs=20), LOGITS),
    "dkd_without_labels": Recipe(lambda: DKD(target="teacher", head="sigmoid"), LOGITS),
    "nkd": Recipe(NKD, LOGITS),
    "uskd": Recipe(USKD, {**LOGITS, "middle": {"path": "maps", "strides": [2]}}, teacher=False),
    "fitnet": Recipe(FitNet, {"maps": "maps"}),
    "rkd": Recipe(RKD, POOLED),
    "pkt": Recipe(PKT, POOLED),
    "ofd": Recipe(OFD, {"pre": "pre"}),
    "ofd_batch_statistics": Recipe(lambda: OFD(batch_statistics_teacher=True), {"pre": "pre"}),
    "crd": Recipe(lambda: CRD(IMAGES, dim=8), POOLED),
    "review_kd": Recipe(ReviewKD, REVIEW),
    "review_kd_pp": Recipe(
        lambda: Combined(
            {"kd": ReviewKD(), "nd": NormDirection(CLASSES)}, {"kd": ["maps", "pooled"], "nd": ["pooled"]}
        ),
        REVIEW,
    ),
    "nd": Recipe(lambda: NormDirection(CLASSES), POOLED),
    "srd": Recipe(SRD, POOLED),
    "srd_sum": Recipe(lambda: SRD(log=False), POOLED),
    "manifold": Recipe(
        lambda: Manifold([0, 1], [0, 1], num_random=12), {"tokens": "tokens"}, models=transformer
    ),
    "masked_kd": Recipe(lambda: MaskedKD(keep=6), {**LOGITS, "attention": ATTENTION}, models=transformer),
}


def batch(indices: torch.Tensor, epoch: float = 0.0) -> ClassificationBatch:
    """Images that show their class a little; a function of their positions."""
    labels = indices % CLASSES
    noise = torch.stack(
        [torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(int(i))) for i in indices]
    )
    negatives = (indices[:, None] + torch.arange(1, CLASSES)) % IMAGES
    return ClassificationBatch(
        images=noise + labels[:, None, None, None] / CLASSES,
        targets=labels,
        labels=labels,
        indices=indices,
        names=[f"image {i}" for i in indices],
        epoch=epoch,
        negatives=negatives,
    )


class Loader:
    """Endless batches of 8 of 24 images."""

    def __iter__(self) -> Iterator[ClassificationBatch]:
        step = 0
        while True:
            yield batch(torch.arange(8 * step, 8 * step + 8) % IMAGES, epoch=step / 3)
            step += 1


def whole_set() -> list[ClassificationBatch]:
    """Every image once."""
    return [batch(torch.arange(start, start + 8)) for start in range(0, IMAGES, 8)]


def build(name: str, seed: int = 0) -> Distiller:
    """Student, wider teacher, and method, prepared."""
    torch.manual_seed(seed)
    recipe = RECIPES[name]
    student = recipe.models()
    teacher: nn.Module | None = None
    if recipe.teacher and name != "none":
        teacher = recipe.models(8 if recipe.models is convolutional else 16)
        if recipe.models is convolutional:
            # Statistics of a network that has seen images.
            teacher.train()
            for _ in range(2):
                teacher(batch(torch.arange(IMAGES)))
    model = Distiller(student, teacher, recipe.method(), taps=recipe.taps)
    if model.needs_preparation:
        model.prepare_method(whole_set())
    return model.train()
