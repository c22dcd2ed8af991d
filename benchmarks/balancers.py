#!/usr/bin/env python
"""Seconds and peak memory of every balancer's training step, relative to a plain step.

    python benchmarks/balancers.py
    python benchmarks/balancers.py --rounds 30 --batch 16 --only amortized closed_form

The student is a small timm ViT with two objectives (classification, and a feature target as in distillation);
neither trainer nor data loader take part, so the figures are the balancers' own. Time: all balancers take one
step each per round, in one process and in turn; medians over the rounds, ratios to the plain step of the same
round. Memory: one process per balancer, because a process's peak never falls; on a CPU the growth of the
resident set from before the first step, on CUDA the peak of allocated memory. A second table compares the
weights that the gradients at the taps give with the exact ones, on real digits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import describe
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mokd_det.balancing import (
    Amortized,
    AmortizedValues,
    Balancer,
    ClosedForm,
    ClosedFormTaps,
    FixedWeights,
    GradNorm,
    StepContext,
    TorchJD,
    UncertaintyWeighting,
)

OBJECTIVES = ("distill", "task")
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


def timed(run: Run, batch: tuple[Tensor, ...], device: str) -> float:
    start = time.perf_counter()
    run.step(*batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds(arguments: argparse.Namespace, names: list[str]) -> dict[str, list[float]]:
    """Seconds per step, by round."""
    runs = {name: random_run(arguments, BALANCERS[name]() if name in BALANCERS else None) for name in names}
    for run, batch in runs.values():
        timed(run, batch, arguments.device)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(arguments.rounds):
        # The order rotates: no balancer always follows the same one.
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            run, batch = runs[name]
            samples[name].append(timed(run, batch, arguments.device))
    return samples


def peak_memory(arguments: argparse.Namespace, name: str) -> float:
    """MB above the state before the first step, measured in this process."""
    run, batch = random_run(arguments, BALANCERS[name]() if name in BALANCERS else None)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        # Sets the peak back to the present size. getrusage() would not do: it remembers the parent's size.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_peak()
    for _ in range(5):
        run.step(*batch)
    if arguments.device == "cuda":
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    return (resident_peak() - before) / 1e6


def resident_peak() -> int:
    """Bytes, the high-water mark of this process's resident set (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def peak_memory_apart(arguments: argparse.Namespace, name: str) -> float:
    command = [sys.executable, __file__, "--memory-of", name]
    for key in ("size", "width", "depth", "batch", "device"):
        command += [f"--{key}", str(getattr(arguments, key))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=96, help="pixels, a multiple of 16")
    parser.add_argument("--depth", type=int, default=6, help="blocks of the ViT")
    parser.add_argument("--width", type=int, default=384, help="channels of the ViT, a multiple of 3")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=list(BALANCERS), default=list(BALANCERS))
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of is not None:
        print(peak_memory(arguments, arguments.memory_of))
        return

    names = ["plain", *arguments.only]
    samples = seconds(arguments, names)
    memory = {name: peak_memory_apart(arguments, name) for name in names}
    parameters = sum(p.numel() for p in random_run(arguments, None)[0].student.parameters())
    print(", ".join(f"{key} {value}" for key, value in describe().items()))
    print(
        f"ViT with {parameters / 1e6:.1f} M parameters (a gradient is {parameters * 4 / 1e6:.0f} MB), "
        f"batch {arguments.batch} × 3 × {arguments.size} × {arguments.size}, {arguments.rounds} rounds"
    )
    print(f"\n{'balancer':30}{'s / step':>10}{'ratio':>8}{'peak MB':>10}{'over plain':>12}")
    rows = []
    for name in names:
        ratios = [own / plain for own, plain in zip(samples[name], samples["plain"], strict=True)]
        # update_every alternates cheap and dear steps: their mean is what a training sees.
        middle = statistics.fmean if "update_every" in name else statistics.median
        row = {
            "balancer": name,
            "seconds": middle(samples[name]),
            "ratio": middle(ratios),
            "peak_mb": memory[name],
            "over_plain_mb": memory[name] - memory["plain"],
        }
        rows.append(row)
        print(
            f"{name:30}{row['seconds']:10.4f}{row['ratio']:8.2f}{row['peak_mb']:10.0f}{row['over_plain_mb']:12.0f}"
        )
    taps = taps_against_exact()
    print("\nclosed_form_taps against closed_form, on digits:")
    for key, value in taps.items():
        print(f"  {key}: {value:.4g}")
    if arguments.json:
        figures = {"machine": describe(), "balancers": rows, "taps": taps}
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
