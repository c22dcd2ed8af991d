#!/usr/bin/env python
"""Seconds and peak memory of every balancer's training step, relative to a plain step.

    python benchmarks/balancers.py
    python benchmarks/balancers.py --rounds 30 --batch 16 --only amortized closed_form

The student is a small timm ViT with two objectives (classification, and a feature target as in distillation);
neither trainer nor data loader take part, so the figures are the balancers' own. Time: see harness.py; the figures of
balancers that update every tenth step are means over the rounds, which is what a training sees. Memory: one process
per balancer, because a process's peak never falls; on a CPU the growth of the resident set from before the first step,
on CUDA the peak of allocated memory. A second table compares the weights that the gradients at the taps give with the
exact ones, on real digits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import measure, options_of, parser_of
from memory import apart, reset_peak, resident_peak
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mokd_det.balancing import (
    DOT,
    Amortized,
    AmortizedValues,
    Balancer,
    ClosedForm,
    ClosedFormTaps,
    FixedWeights,
    GradientShare,
    GradNorm,
    MeanOf,
    Replay,
    StepContext,
    SumNorm,
    TorchJD,
    UncertaintyWeighting,
)

OBJECTIVES = ("distill", "task")


_FOLDER = tempfile.TemporaryDirectory()  # goes with the program


def recorded_run() -> str:
    """A finished run of 100 records, all of the same weights."""
    weights = {f"{kind}/{name}": 0.5 for kind in ("pi", "raw_weight") for name in OBJECTIVES}
    lines = [json.dumps({"iteration": 20 * record, **weights}) for record in range(100)]
    Path(_FOLDER.name, "metrics.json").write_text("\n".join(lines))
    return _FOLDER.name


BALANCERS: dict[str, Callable[[], Balancer]] = {
    "fixed": FixedWeights,
    "uncertainty": UncertaintyWeighting,
    "amortized": Amortized,
    "amortized, update_every=10": lambda: Amortized(update_every=10),
    "amortized_values": AmortizedValues,
    "closed_form_taps": ClosedFormTaps,
    "closed_form": ClosedForm,
    "closed_form, update_every=10": lambda: ClosedForm(update_every=10),
    "gradnorm": GradNorm,
    "gradient_share, update_every=10": lambda: GradientShare(period=100, update_every=10),
    "dot": DOT,
    "sum_norm of amortized": lambda: SumNorm(Amortized()),
    "mean_of": lambda: MeanOf(recorded_run()),
    "replay": lambda: Replay(recorded_run()),
    "torchjd mgda": lambda: TorchJD("mgda"),
    "torchjd pcgrad": lambda: TorchJD("pcgrad"),
    "torchjd cagrad": lambda: TorchJD("cagrad"),
    "torchjd imtl_g": lambda: TorchJD("imtl_g"),
    "torchjd upgrad": lambda: TorchJD("upgrad"),
    "torchjd aligned_mtl": lambda: TorchJD("aligned_mtl"),
}


class Student(nn.Module):
    """ViT with a classification head and a private projection to the teacher's features; tap: its tokens."""

    def __init__(self, size: int, patch: int, width: int, depth: int, features: int, classes: int) -> None:
        super().__init__()
        self.vit = VisionTransformer(
            img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=3, num_classes=classes
        )
        self.projection = nn.Linear(width, features)
        self.tokens: Tensor | None = None

    def forward(self, images: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        self.tokens = self.vit.forward_features(images)
        return torch.stack(
            [
                F.smooth_l1_loss(self.projection(self.tokens[:, 1:].mean(1)), features),
                F.cross_entropy(self.vit.forward_head(self.tokens), labels),
            ]
        )


class Run:
    """A student, its optimiser and a balancer, a step at a time; without a balancer, the plain sum."""

    def __init__(self, student: Student, balancer: Balancer | None) -> None:
        self.student, self.balancer, self.iteration = student, balancer, 0
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
        if balancer is not None:
            balancer.setup(OBJECTIVES, next(student.parameters()).device)

    def context(self) -> StepContext:
        return StepContext(
            list(self.student.vit.parameters()),
            list(self.student.projection.parameters()),
            iteration=self.iteration,
            taps=lambda: [self.student.tokens],
        )

    def step(self, *batch: Tensor) -> dict[str, Tensor | float]:
        def forward(*, sync: bool = True) -> Tensor:
            return self.student(*batch)

        scalars: dict[str, Tensor | float] = {}
        self.optimizer.zero_grad()
        if self.balancer is None:
            forward().sum().backward()
            self.optimizer.step()
        else:
            scalars.update(self.balancer.backward([forward], self.context()))
            self.optimizer.step()
            scalars.update(self.balancer.after_step([forward], self.context()))
        self.iteration += 1
        return scalars


def random_run(arguments: argparse.Namespace, balancer: Balancer | None) -> tuple[Run, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    student = Student(arguments.size, 16, arguments.width, arguments.depth, features=512, classes=100).to(
        arguments.device
    )
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    labels = torch.randint(0, 100, (arguments.batch,))
    batch = (images, labels, torch.randn(arguments.batch, 512))
    return Run(student, balancer), tuple(tensor.to(arguments.device) for tensor in batch)


def peak_memory(arguments: argparse.Namespace, name: str) -> float:
    """MB above the state before the first step, measured in this process."""
    torch.set_num_threads(arguments.threads)
    run, batch = random_run(arguments, BALANCERS[name]() if name in BALANCERS else None)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        reset_peak()
        before = resident_peak()
    for _ in range(5):
        run.step(*batch)
    if arguments.device == "cuda":
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    return (resident_peak() - before) / 1e6


def taps_against_exact(steps: int = 120) -> dict[str, float]:
    """Along a training with exact weights: how far the weights of the taps are off, and their update."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1) / 8 - 1
    images = F.interpolate(images, size=32)
    flat = torch.tensor(digits.data, dtype=torch.float32)
    components = torch.pca_lowrank(flat, q=16)[0]
    features = components * len(flat) ** 0.5
    labels = torch.tensor(digits.target)
    run = Run(Student(32, 8, 48, 4, features=16, classes=10), ClosedForm())
    taps = ClosedFormTaps()
    taps.setup(OBJECTIVES)
    errors, cosines, exact = [], [], []
    for _ in range(steps):
        chosen = torch.randperm(len(images))[:64]
        batch = images[chosen], labels[chosen], features[chosen]
        updates = []
        for balancer in (taps, ClosedForm()):
            balancer.setup(OBJECTIVES)
            run.optimizer.zero_grad()
            scalars = balancer.backward(
                [lambda *, sync=True, batch=batch: run.student(*batch)], run.context()
            )
            gradients = [p.grad.flatten() for p in run.student.vit.parameters() if p.grad is not None]
            updates.append((float(scalars["pi/distill"]), torch.cat(gradients)))
        errors.append(abs(updates[0][0] - updates[1][0]))
        cosines.append(float(F.cosine_similarity(updates[0][1], updates[1][1], dim=0)))
        exact.append(updates[1][0])
        run.step(*batch)
    return {
        "steps": steps,
        "median |pi_taps - pi_exact|": statistics.median(errors),
        "largest": max(errors),
        "median cosine of the two updates": statistics.median(cosines),
        "smallest": min(cosines),
        "median pi_distill (exact)": statistics.median(exact),
    }


def main() -> None:
    parser = parser_of(__doc__, rounds=20, warmup=1)
    add = parser.add_argument
    add("--batch", type=int, default=8)
    add("--size", type=int, default=96, help="pixels, a multiple of 16")
    add("--depth", type=int, default=6, help="blocks of the ViT")
    add("--width", type=int, default=384, help="channels of the ViT, a multiple of 3")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--only", nargs="+", choices=list(BALANCERS), default=list(BALANCERS))
    arguments = options_of(parser)

    names = ["plain", *arguments.only]
    runs = {name: random_run(arguments, BALANCERS[name]() if name in BALANCERS else None) for name in names}
    measured = measure(
        {name: partial(run.step, *batch) for name, (run, batch) in runs.items()},
        arguments,
        baseline="plain",
        mean=[name for name in names if "update_every" in name],
    )
    memory = {name: apart(peak_memory, arguments, name) for name in names}
    taps = taps_against_exact()
    parameters = sum(p.numel() for p in runs["plain"][0].student.parameters())
    shape = f"{arguments.batch} x 3 x {arguments.size} x {arguments.size}"
    measured.report(
        "balancers",
        settings={
            "ViT, million parameters": round(parameters / 1e6, 1),
            "MB of a gradient": round(parameters * 4 / 1e6),
            "batch": shape,
        },
        json_file=arguments.json,
        columns={
            "peak MB": {name: f"{memory[name]:.0f}" for name in names},
            "over plain": {name: f"{memory[name] - memory['plain']:.0f}" for name in names},
        },
        further={"megabytes": memory, "closed_form_taps against closed_form": taps},
    )
    print("\nclosed_form_taps against closed_form, on digits:")
    for key, value in taps.items():
        print(f"  {key}: {value:.4g}")


if __name__ == "__main__":
    main()
