#!/usr/bin/env python
"""Parameters, seconds and peak memory that each distillation method adds to a training step.

    python benchmarks/methods.py
    python benchmarks/methods.py --rounds 9 --only kd crd mokd

Convolutional methods: the networks and settings of a CIFAR-100 config, ResNet-20 from ResNet-56 unless --config names
another one; methods of vision transformers: a ViT of 6 blocks of width 96 from one of 12 of width 192, 64 patches.
Random weights and images; the losses are summed with the config's weights, the optimiser is SGD, and neither trainer
nor data loader take part. Time: of the processor, so that other work on the machine counts little; all methods take one
step each per round, in one process and in turn; medians of the differences to the same round's step of the student
beside the teacher's forward. Memory: one process per method, the
growth of the peak from before the first step, as a difference to the same. A method without a teacher is compared
with the student alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from machine import describe
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mokd_det.balancing import Objectives
from mokd_det.classification import ClassificationBatch, ImageClassifier
from mokd_det.distillation import Distiller, LogitDistillation, Manifold, MaskedKD, NoDistillation
from mokd_det.engine import load_config

ROOT = Path(__file__).parents[1]
SIZE, CLASSES = 32, 100
ALONE, TEACHER = "student alone", "student, teacher's forward"
CNN = [
    "kd", "dkd", "nkd", "uskd", "fitnet", "ofd", "review_kd", "rkd", "pkt", "crd", "srd", "vkd",
    "kd_pp", "dkd_pp", "review_kd_pp", "mokd",
]  # fmt: skip
VIT = ["vit: kd", "vit: manifold", "vit: masked_kd"]
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


class Run:
    """A student with its teacher and method, a step at a time."""

    def __init__(self, config: str, name: str) -> None:
        torch.manual_seed(0)
        family, _, short = name.rpartition(": ")
        self.runs_teacher = short == TEACHER
        if family == "vit":
            self.model = transformer_pair(short)
            groups: Any = {"all": ["loss_*"]}
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

    def step(self, batch: ClassificationBatch) -> None:
        if self.runs_teacher:
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


def baseline(name: str) -> str:
    """The step that a method is compared with."""
    family = "vit: " if name.startswith("vit: ") else ""
    return family + (ALONE if name in WITHOUT_TEACHER else TEACHER)


def seconds(arguments: argparse.Namespace, names: list[str]) -> dict[str, list[float]]:
    """Seconds of processor time per step, by round."""
    batch = random_batch(arguments.batch)
    runs = {name: Run(arguments.config, name) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(arguments.rounds + 1):
        # The order rotates: no method always follows the same one.
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            start = time.process_time()
            runs[name].step(batch)
            if turn:  # the first step sets things up
                samples[name].append(time.process_time() - start)
    return samples


def resident_peak() -> int:
    """Bytes, the high-water mark of this process's resident set (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def peak_memory(arguments: argparse.Namespace, name: str) -> tuple[float, int]:
    """MB above the state before the model was built, measured in this process, and the method's parameters."""
    batch = random_batch(arguments.batch)
    # Sets the peak back to the present size. getrusage() would not do: it remembers the parent's size.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_peak()
    run = Run(arguments.config, name)
    for _ in range(2):
        run.step(batch)
    return (resident_peak() - before) / 1e6, run.parameters


def peak_memory_apart(arguments: argparse.Namespace, name: str) -> tuple[float, int]:
    """The same in a process of its own, forked, so that it need not import everything again."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(peak_memory, arguments, name).result()


def table(arguments: argparse.Namespace, names: list[str]) -> Iterator[dict[str, Any]]:
    """One row per method, in order; baselines are rows of their own."""
    # Before anything runs here: a fork of a process that has threads may hang.
    measured = {name: peak_memory_apart(arguments, name) for name in names}
    samples = seconds(arguments, names)
    for name in names:
        reference = baseline(name)
        differences = [own - other for own, other in zip(samples[name], samples[reference], strict=True)]
        yield {
            "method": name,
            "parameters": measured[name][1],
            "seconds": statistics.median(samples[name]),
            "extra_ms": 1e3 * statistics.median(differences),
            "megabytes": measured[name][0],
            "extra_mb": measured[name][0] - measured[reference][0],
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--config", default="configs/CIFAR100/resnet56_resnet20.py", help="a pair of networks"
    )
    parser.add_argument("--only", nargs="+", choices=[*CNN, *VIT], default=[*CNN, *VIT], metavar="METHOD")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    names = []
    for family, methods in (("", CNN), ("vit: ", VIT)):
        chosen = [name for name in methods if name in arguments.only]
        names += [family + ALONE, family + TEACHER, *chosen] if chosen else []
    rows = list(table(arguments, names))
    print(", ".join(f"{key} {value}" for key, value in describe().items()))
    print(f"{arguments.config} and a pair of ViTs, batch {arguments.batch}, {arguments.rounds} rounds\n")
    print(f"{'method':32}{'parameters':>12}{'s / step':>10}{'extra ms':>10}{'peak MB':>9}{'extra MB':>10}")
    for row in rows:
        print(
            f"{row['method']:32}{row['parameters']:12,}{row['seconds']:10.3f}{row['extra_ms']:10.1f}"
            f"{row['megabytes']:9.0f}{row['extra_mb']:10.0f}"
        )
    if arguments.json:
        figures = {"machine": describe(), "methods": rows}
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
