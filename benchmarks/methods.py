#!/usr/bin/env python
"""Parameters, seconds and peak memory that each distillation method adds to a training step.

    python benchmarks/methods.py
    python benchmarks/methods.py --rounds 9 --only kd crd mokd

Convolutional methods: the networks and settings of a CIFAR-100 config, ResNet-20 from ResNet-56 unless --config names
another one; methods of vision transformers: a ViT of 6 blocks of width 96 from one of 12 of width 192, 64 patches;
methods of detectors: the quick start's ViDTs, 8 images of 128 × 128, for CrossKD torchvision's FCOS, 2 such images, and
for LD the D-FINEs of configs/digits_pairs, 16 of 64 × 64.
Random weights and images; the losses are summed with the config's weights, the optimiser is SGD, and neither trainer
nor data loader take part. Time: see harness.py; medians of the differences to the same round's step of the student
beside the teacher's forward, and of the ratios to that of the student alone. Memory: one process per method, the growth
of the peak from before the first step, as a difference to the same. A method without a teacher is compared with the
student alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from harness import measure, options_of, parser_of
from memory import apart, reset_peak, resident_peak
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.detection import fcos_resnet50_fpn
from training import random_scenes

from mokd_det.balancing import Objectives
from mokd_det.classification import ClassificationBatch, ImageClassifier
from mokd_det.config import load_config
from mokd_det.distillation import (
    FGD,
    KDDETR,
    MGD,
    PKD,
    CrossKD,
    DETRDistill,
    Distiller,
    FoundationFeatures,
    LogitDistillation,
    Manifold,
    MaskedKD,
    MoKD,
    NoDistillation,
)
from mokd_det.modeling import TorchvisionDetector

ROOT = Path(__file__).parents[1]
SIZE, CLASSES = 32, 100
ALONE, TEACHER = "student alone", "student, teacher's forward"
CNN = [
    "kd", "dkd", "nkd", "uskd", "fitnet", "ofd", "review_kd", "rkd", "pkt", "crd", "srd", "vkd",
    "kd_pp", "dkd_pp", "review_kd_pp", "mokd",
]  # fmt: skip
VIT = ["vit: kd", "vit: manifold", "vit: masked_kd"]
DETECTORS = ["pkd", "mgd", "fgd", "foundation", "detr_distill", "kd_detr"]
FAMILIES = {
    "": CNN,
    "vit: ": VIT,
    "vidt: ": [f"vidt: {name}" for name in [*DETECTORS, "mokd"]],
    "fcos: ": ["fcos: cross_kd"],
    "d_fine: ": ["d_fine: ld"],
}
DETECTORS_OF = {"vidt": (8, 128), "fcos": (2, 128), "d_fine": (16, 64)}
"""Family → images of a batch and their side."""
CHOICES = [name for methods in FAMILIES.values() for name in methods]
WITHOUT_TEACHER = ("uskd",)


def transformer(width: int, depth: int) -> ImageClassifier:
    vit = VisionTransformer(
        img_size=SIZE, patch_size=4, embed_dim=width, depth=depth, num_heads=width // 32, num_classes=CLASSES
    )
    return ImageClassifier(vit, num_classes=CLASSES)


def transformer_pair(name: str) -> Distiller:
    student, teacher = transformer(96, 6), transformer(192, 12)
    logits = {"logits": "logits"}
    if name == "manifold":
        return Distiller(student, teacher, Manifold([0, 1, 4, 5], [0, 1, 10, 11]), taps={"tokens": "tokens"})
    if name == "masked_kd":
        queries = {"path": "network.blocks.5.attn.qkv", "channels": 3 * 96, "num_tokens": 65}
        return Distiller(student, teacher, MaskedKD(keep=32), taps={**logits, "attention": queries})
    if name == "kd":
        return Distiller(student, teacher, LogitDistillation(), taps=logits)
    return Distiller(student, teacher, NoDistillation(), taps={})


def detector_pair(family: str, name: str) -> Distiller:
    """The quick start's ViDTs, torchvision's FCOS from itself, or two small D-FINEs."""
    if family == "d_fine":
        model = load_config(str(ROOT / "configs/digits_pairs/ld.py")).model
        model.student.class_names = model.teacher.class_names = [str(digit) for digit in range(10)]
        model.teacher_checkpoint = ""
        if name != "ld":
            model.method, model.taps = L(NoDistillation)(), {}
        return instantiate(model)
    if family == "fcos":
        builders = [fcos_resnet50_fpn] * 2
        student, teacher = (
            TorchvisionDetector(build(weights=None, weights_backbone=None, num_classes=10))
            for build in builders
        )
        pyramid = {"path": "detector.backbone", "strides": [8, 16, 32, 64, 128], "channels": [256] * 5}
        if name == "cross_kd":
            return Distiller(student, teacher, CrossKD(), taps={"patch": pyramid})
        return Distiller(student, teacher, NoDistillation(), taps={})
    cfg = load_config(str(ROOT / "configs/quickstart/mokd.py"))
    student, teacher = instantiate(cfg.model.student), instantiate(cfg.model.teacher)
    on_queries = ("head", "head_logits", "head_boxes")
    methods: dict[str, tuple[Any, tuple[str, ...]]] = {
        "pkd": (PKD, ("patch",)),
        "mgd": (MGD, ("patch",)),
        "fgd": (FGD, ("patch",)),
        "foundation": (FoundationFeatures, ("patch",)),
        "detr_distill": (DETRDistill, ("patch", *on_queries)),
        "kd_detr": (KDDETR, ("logits", "boxes")),
        "mokd": (MoKD, ("patch", "neck", "head")),
    }
    make, taps = methods.get(name, (NoDistillation, ()))
    return Distiller(student, teacher, make(), taps={tap: tap for tap in taps})


class Run:
    """A student with its teacher and method, a step at a time."""

    def __init__(self, config: str, name: str) -> None:
        torch.manual_seed(0)
        family, _, short = name.rpartition(": ")
        self.runs_teacher = short == TEACHER
        if family in DETECTORS_OF:
            self.model = detector_pair(family, short)
            groups: Any = {"all": ["loss_*"]}
        elif family == "vit":
            self.model = transformer_pair(short)
            groups = {"all": ["loss_*"]}
        else:
            method = "none" if short in (ALONE, TEACHER) else short
            cfg = load_config(str(ROOT / config), [f"choice.method={method}"])
            cfg.model.teacher_checkpoint = ""
            self.model = instantiate(cfg.model)
            groups = cfg.objectives
        self.objectives = Objectives(groups)
        self.model.train()
        self.optimizer = torch.optim.SGD(
            [p for p in self.model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9
        )
        if self.model.needs_preparation:
            for module in self.model.method.modules():
                if "centers" in dict(module.named_buffers(recurse=False)):
                    nn.init.normal_(module.centers)

    @property
    def parameters(self) -> int:
        """Trainable ones of the method."""
        return sum(p.numel() for p in self.model.private_parameters())

    def step(self, batch: Any) -> None:
        if self.runs_teacher:
            assert self.model.teacher is not None
            with torch.no_grad():
                self.model.teacher(batch)
        losses = self.model(self.model.prepare_batch(batch))
        self.optimizer.zero_grad()
        self.objectives(losses).sum().backward()
        self.optimizer.step()
        self.model.after_step()


def random_batch(size: int) -> ClassificationBatch:
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    labels = draw(CLASSES, size)
    return ClassificationBatch(
        images=torch.randn(size, 3, SIZE, SIZE, generator=generator),
        targets=labels,
        labels=labels,
        indices=draw(50000, size),
        names=[""] * size,
        epoch=100.0,
        negatives=draw(50000, size, 16384),
    )


def family_of(name: str) -> str:
    """The beginning that a name has in common with its baselines."""
    family, colon, _ = name.rpartition(": ")
    return family + colon


def batch_for(arguments: argparse.Namespace, name: str) -> Any:
    family = family_of(name).removesuffix(": ")
    if family in DETECTORS_OF:
        images, side = DETECTORS_OF[family]
        return random_scenes(images, side, side, objects=5, classes=10)
    return random_batch(arguments.batch)


def baseline(name: str) -> str:
    """The step that a method is compared with."""
    family = family_of(name)
    return family + (ALONE if name in WITHOUT_TEACHER else TEACHER)


def peak_memory(arguments: argparse.Namespace, name: str) -> float:
    """MB above the state before the model was built, measured in this process."""
    batch = batch_for(arguments, name)
    reset_peak()
    before = resident_peak()
    run = Run(arguments.config, name)
    for _ in range(2):
        run.step(batch)
    return (resident_peak() - before) / 1e6


def main() -> None:
    parser = parser_of(__doc__, rounds=9, warmup=1)
    add = parser.add_argument
    parser.set_defaults(clock="cpu")
    add("--no-memory", action="store_true", help="times and parameters alone, without a process per method")
    add("--batch", type=int, default=64)
    add("--config", default="configs/CIFAR100/distill.py", help="a pair of networks")
    add("--only", nargs="+", choices=CHOICES, default=CHOICES, metavar="METHOD")
    arguments = options_of(parser)

    names = []
    for family, methods in FAMILIES.items():
        chosen = [name for name in methods if name in arguments.only]
        names += [family + ALONE, family + TEACHER, *chosen] if chosen else []
    # Before anything runs here and starts threads.
    measured_apart = () if arguments.no_memory else names
    memory = {name: apart(peak_memory, arguments, name, start="fork") for name in measured_apart}
    batches = {name: batch_for(arguments, name) for name in names}
    runs = {name: Run(arguments.config, name) for name in names}
    measured = measure({name: partial(built.step, batches[name]) for name, built in runs.items()}, arguments)

    def more(name: str, seconds: Mapping[str, float]) -> float:
        return seconds[name] - seconds[baseline(name)]

    def times_alone(name: str, seconds: Mapping[str, float]) -> float:
        return seconds[name] / seconds[family_of(name) + ALONE]

    extra = {name: measured.derived(partial(more, name)) for name in names}
    ratio = {name: measured.derived(partial(times_alone, name)) for name in names}
    columns = {
        "ratio": {name: f"{spread.median:.2f}" for name, spread in ratio.items()},
        "extra ms": {name: f"{1e3 * spread.median:+.0f}" for name, spread in extra.items()},
        "parameters": {name: f"{built.parameters:,}" for name, built in runs.items()},
    }
    if memory:
        columns["peak MB"] = {name: f"{megabytes:.0f}" for name, megabytes in memory.items()}
        columns["extra MB"] = {name: f"{memory[name] - memory[baseline(name)]:+.0f}" for name in names}
    measured.report(
        "methods",
        settings={"config": f"{arguments.config} and pairs of transformers", "batch": arguments.batch},
        json_file=arguments.json,
        columns=columns,
        further={
            "ratio": {name: spread.as_dict() for name, spread in ratio.items()},
            "extra seconds": {name: spread.as_dict() for name, spread in extra.items()},
            "parameters": {name: built.parameters for name, built in runs.items()},
            "megabytes": memory,
        },
    )


if __name__ == "__main__":
    main()
