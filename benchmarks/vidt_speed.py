#!/usr/bin/env python
"""A training step of ViDT, plainly written and as the package computes it, in one process and in turn.

    python benchmarks/vidt_speed.py --clock cpu
    python benchmarks/vidt_speed.py --clock cpu --size 512 640 --batch 1
    python benchmarks/vidt_speed.py --clock cpu --only backbone
    python benchmarks/vidt_speed.py --memory
    python benchmarks/vidt_speed.py --compiled backbone

A step is forward, losses with matching, backward, gradient clipping and AdamW; random weights, images and eight objects
for each. The yardstick is plain_vidt.py with an AdamW that goes from tensor to tensor. The matrix products, counted by
PyTorch and timed alone at the speed of a large one, are the floor below which no other formulation gets.

``--memory`` measures activation checkpointing instead: for each setting, in a process of its own, by how much the
resident set grows over what weights and optimiser need (peak of a step), and the step's time over the plain setting's.
``--compiled`` compares our step with the same where torch.compile has taken a part of it; compiling takes minutes,
before the first round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import instantiate
from harness import heading, measure, options_of, parser_of, table
from memory import apart, reset_peak, resident_peak
from plain_vidt import plain_vidt
from torch.utils.flop_counter import FlopCounterMode
from training import random_scenes

from mokd_det.config import load_config
from mokd_det.engine.optimizer import get_vidt_param_groups, with_fast_kernel
from mokd_det.modeling import ViDT
from mokd_det.modeling.backbone import DetFeatures
from mokd_det.modeling.backbone.swin_ram import Block
from mokd_det.modeling.decoder import DecoderLayer

CONFIGS = Path(__file__).parents[1] / "configs" / "COCO"
CHECKPOINTED = {
    "nothing": (False, False),
    "decoder": (False, True),
    "backbone": (True, False),
    "backbone and decoder": (True, True),
}
"""What activation checkpointing covers: of the backbone's blocks, of the decoder's layers."""


def build(variant: str, checkpointed: str = "nothing") -> ViDT:
    """A variant of configs/COCO with random weights, in training mode."""
    cfg = load_config(str(CONFIGS / f"vidt_{variant}.py"), [])
    backbone, decoder = CHECKPOINTED[checkpointed]
    cfg.model.backbone.activation_checkpointing = backbone
    cfg.model.transformer.activation_checkpointing = decoder
    torch.manual_seed(0)
    return instantiate(cfg.model).train()


def training_step(model: ViDT, batch: list[dict], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """What the training loop does for one batch, without data, logs and checks."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()

    return step


def parts(model: ViDT, batch: list[dict]) -> dict[str, Callable[[], None]]:
    """Forward and backward of the backbone, of neck and decoder, and of criterion and matcher, each alone."""
    images, padding = model.preprocess(batch)
    with torch.no_grad():
        features = model.backbone(images, padding)
        output = model.forward_tensors(images, padding)
    targets = model.targets(batch, tuple(images.shape[-2:]))
    backbone, criterion = model.backbone, model.criterion
    assert criterion is not None
    fixed = _Fixed(features)

    def run_backbone() -> None:
        found = backbone(images, padding)
        (sum(level.sum() for level in found.patch_features) + found.det_tokens.sum()).backward()

    def run_rest() -> None:
        model.backbone = fixed
        try:
            found = model.forward_tensors(images, padding)
        finally:
            model.backbone = backbone
        (found.logits.sum() + found.boxes.sum()).backward()

    def run_criterion() -> None:
        logits, boxes = (x.clone().requires_grad_() for x in (output.logits, output.boxes))
        torch.stack([*criterion(logits, boxes, targets).values()]).sum().backward()

    return {"backbone": run_backbone, "neck and decoder": run_rest, "criterion": run_criterion}


class _Fixed(torch.nn.Module):
    """A backbone that has its output already; gradients reach it, as they would the real one."""

    def __init__(self, features: DetFeatures) -> None:
        super().__init__()
        self.features = features

    def forward(self, *_: torch.Tensor) -> DetFeatures:
        maps = [level.detach().requires_grad_() for level in self.features.patch_features]
        det, pos = (x.detach().requires_grad_() for x in (self.features.det_tokens, self.features.det_pos))
        return DetFeatures(maps, det, pos)


def products(model: ViDT, batch: list[dict]) -> float:
    """GFLOP of the matrix products of forward and backward."""
    with FlopCounterMode(display=False) as counter:
        sum(model(batch).values()).backward()
    model.zero_grad()
    return counter.get_total_flops() / 1e9


def product_speed() -> float:
    """GFLOP per CPU second of a large matrix product, the best of ten."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(10):
        start = time.process_time()
        a @ b
        best = min(best, time.process_time() - start)
    return 2 * 1024**3 / best / 1e9


def compare(args: argparse.Namespace) -> None:
    """Plain against ours."""
    batch = random_scenes(args.batch, *args.size)
    ours = build(args.model)
    plain = plain_vidt(ours)
    both = {"plain": plain, "ours": ours}
    calls: dict[str, Callable[[], object]] = {}
    for name, model in both.items():
        if args.only == "step":
            optimizer = torch.optim.AdamW(get_vidt_param_groups(model), lr=1e-5, foreach=False)
            if name == "ours":
                optimizer = with_fast_kernel(torch.optim.AdamW(get_vidt_param_groups(model), lr=1e-5))
            calls[name] = training_step(model, batch, optimizer)
        else:
            calls[name] = parts(model, batch)[args.only]
    measured = measure(calls, args, baseline="plain")
    settings = {
        "model": args.model,
        "batch": args.batch,
        "height": args.size[0],
        "width": args.size[1],
        "measured": args.only,
    }
    speedup = measured.derived(lambda seconds: seconds["plain"] / seconds["ours"])
    further: dict[str, object] = {"speedup": speedup.as_dict()}
    if args.only == "step":
        counts, speed = {name: products(model, batch) for name, model in both.items()}, product_speed()
        further |= {"gflop": counts, "gflop_per_second": speed}
    measured.report("vidt_speed", settings=settings, json_file=args.json, further=further)
    print(
        f"\nours is {speedup.median:.2f} ({speedup.smallest:.2f} to {speedup.largest:.2f}) times as fast as plain"
    )
    if args.only == "step":
        for name, count in counts.items():
            print(
                f"matrix products of {name}: {count:.1f} GFLOP, at least {count / speed:.3f} s at the "
                f"{speed:.0f} GFLOP/s of a large one"
            )


def compare_compiled(args: argparse.Namespace) -> None:
    """Ours as it is against ours with a part compiled, for static shapes."""
    import torch._dynamo

    torch._dynamo.config.cache_size_limit = 64  # each block compiles the same code anew for its shapes
    batch = random_scenes(args.batch, *args.size)
    calls: dict[str, Callable[[], object]] = {}
    for name in ("eager", "compiled"):
        model = build(args.model)
        if name == "compiled":
            parts_of: dict[str, list[torch.nn.Module]] = {
                "backbone": [model.backbone],
                "blocks": [m for m in model.backbone.modules() if isinstance(m, Block)],
                "decoder": [m for m in model.transformer.modules() if isinstance(m, DecoderLayer)],
            }
            for part in parts_of[args.compiled]:
                part.compile(dynamic=False)
        optimizer = with_fast_kernel(torch.optim.AdamW(get_vidt_param_groups(model), lr=1e-5))
        calls[name] = training_step(model, batch, optimizer)
    start = time.perf_counter()
    calls["compiled"]()
    seconds = time.perf_counter() - start
    measured = measure(calls, args, baseline="eager")
    settings = {"model": args.model, "batch": args.batch, "size": tuple(args.size), "compiled": args.compiled}
    measured.report(
        "vidt_compiled", settings=settings, json_file=args.json, further={"first_step_seconds": seconds}
    )
    print(f"\nfirst step, compiling: {seconds:.0f} s")


def one_setting(args: argparse.Namespace, setting: str) -> tuple[int, float]:
    """Peak growth in bytes and CPU seconds of steps under one setting of activation checkpointing."""
    torch.set_num_threads(args.threads)
    model, batch = build(args.model, setting), random_scenes(args.batch, *args.size)
    step = training_step(model, batch, with_fast_kernel(torch.optim.AdamW(model.parameters(), lr=1e-5)))
    small = training_step(
        model, random_scenes(1, 32, 32), with_fast_kernel(torch.optim.AdamW(model.parameters(), lr=1e-5))
    )
    small()  # gradients and libraries are there before the measured step
    reset_peak()
    before, seconds = resident_peak(), []
    for _ in range(args.warmup + args.rounds):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    kept = sorted(seconds[args.warmup :])
    return resident_peak() - before, kept[len(kept) // 2]


def memory(args: argparse.Namespace) -> None:
    """A table of all settings, a process for each."""
    found = {name: apart(one_setting, args, name) for name in CHECKPOINTED}
    plain_peak, plain_seconds = found["nothing"]
    rows = [
        {
            "activation checkpointing of": name,
            "peak MB of a step": f"{peak / 1e6:.0f}",
            "of nothing's": f"{peak / plain_peak:.2f}",
            "CPU s": f"{seconds:.2f}",
            "over nothing's": f"{seconds / plain_seconds:.2f}",
        }
        for name, (peak, seconds) in found.items()
    ]
    print(heading({"model": args.model, "batch": args.batch, "size": tuple(args.size)}) + "\n")
    print(table(rows))


def main() -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--model", default="nano", choices=("nano", "tiny", "small", "base"))
    add("--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"))
    add("--batch", type=int, default=2, metavar="N", help="images per step (%(default)s)")
    add(
        "--only",
        default="step",
        choices=("step", "backbone", "neck and decoder", "criterion"),
        help="a whole step, or forward and backward of a part of the model (%(default)s)",
    )
    add("--memory", action="store_true", help="measure activation checkpointing instead")
    add(
        "--compiled",
        choices=("backbone", "blocks", "decoder"),
        help="measure torch.compile of this part instead",
    )
    args = options_of(parser)
    if args.compiled:
        compare_compiled(args)
    elif args.memory:
        memory(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
