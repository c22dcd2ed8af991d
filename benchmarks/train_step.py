#!/usr/bin/env python
"""Seconds of a plain student step, a teacher forward and a MoKD step, and MoKD's ratio to the first two together.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --size 512 --batch 4 --config mokd_vidt_tiny_from_small
    python benchmarks/train_step.py --size 224 --batch 8 --config mokd_deit_tiny

All three run in one process, in turn, through the trainer and the configs that train_net.py uses; random images and
weights. Figures are medians over the rounds, ratios medians of the rounds' ratios. ``update_every=10`` is the mean
over a cycle: one step with the second forward and nine without.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from machine import describe
from omegaconf import OmegaConf

from mokd_det.classification import ClassificationBatch
from mokd_det.engine import load_config
from mokd_det.engine.build import build_trainer
from mokd_det.engine.train_settings import TrainSettings
from mokd_det.engine.trainer import MoKDTrainer

CONFIGS = Path(__file__).parents[1] / "configs"
CLASSES = 1000


def labelled_batches(size: int, batch: int) -> Iterator[ClassificationBatch]:
    """One fixed batch of random images with smoothed labels, for ever."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (batch,), generator=generator)
    targets = 0.9 * torch.nn.functional.one_hot(labels, CLASSES) + 0.1 / CLASSES
    images = torch.randn(batch, 3, size, size, generator=generator)
    names = [f"random {index}" for index in range(batch)]
    while True:
        yield ClassificationBatch(images, targets, labels, torch.arange(batch), names)


def batches(size: int, batch: int) -> Iterator[list[dict]]:
    """One fixed batch of random images with eight objects each, for ever."""
    generator = torch.Generator().manual_seed(0)
    items = []
    for index in range(batch):
        low = torch.rand(8, 2, generator=generator) * size * 0.6
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(
            torch.cat((low, low + 8 + torch.rand(8, 2, generator=generator) * size * 0.3), 1)
        )
        instances.gt_classes = torch.randint(0, 80, (8,), generator=generator)
        image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        items.append({"image": image, "instances": instances, "image_id": index})
    while True:
        yield items


def find_config(name: str) -> Path:
    """A config of configs/COCO or configs/ImageNet."""
    return next(path for folder in ("COCO", "ImageNet") for path in (CONFIGS / folder).glob(f"{name}.py"))


def classifies(name: str) -> bool:
    return find_config(name).parent.name == "ImageNet"


def alone_config(name: str) -> tuple[str, list[str]]:
    """The config of the same student without a teacher, and overrides."""
    family, size = name.split("_")[1:3]
    if family == "vidt":
        return f"vidt_{size}", []
    # The same network: both heads learn from the labels.
    network = f"model.network.name=deit_{size}_distilled_patch16_224"
    return f"deit_{size}", [network, "model.separate_heads=False"]


def trainer(config: str, size: int, batch: int, overrides: list[str]) -> MoKDTrainer:
    """The trainer of a config on random images, without hooks and checkpoints."""
    cfg = load_config(str(find_config(config)), ["train.init_checkpoint=", *overrides])
    if "teacher" in cfg.model:
        cfg.model.teacher_checkpoint = ""
    make = labelled_batches if classifies(config) else batches
    cfg.dataloader.train = L(make)(size=size, batch=batch)
    built = build_trainer(cfg, TrainSettings.from_config(OmegaConf.to_container(cfg.train, resolve=True)))
    built.model.train()
    built.storage, built.iter, built.max_iter = EventStorage(), 0, 10**9
    return built


def step(trained: MoKDTrainer, update_every: int | None = None) -> None:
    """One optimiser step, as the training loop runs it.

    Args:
        update_every: of the balancer, for this step; None: as configured.
    """
    if update_every is not None:
        trained.balancer.update_every = update_every
    with trained.storage:
        trained.run_step()
    trained.storage.step()
    trained.iter += 1


def teacher_forward(trained: MoKDTrainer, images: object, amp: bool) -> None:
    """What a step does before the student's forward, in the training's precision."""
    with torch.autocast(trained.device.type, dtype=torch.bfloat16, enabled=amp):
        trained.module.prepare_batch(images)


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of a call; on CUDA until the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="mokd_vidt_nano", help="a distillation config of configs/COCO or configs/ImageNet"
    )
    parser.add_argument("--size", type=int, default=256, help="side of the square images in pixels")
    parser.add_argument("--batch", type=int, default=2, help="images per step")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads; more than one collapses when other work runs beside",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision (bfloat16)")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count the process's CPU seconds instead of the clock's: for a CPU that does other work (--threads 1)",
    )
    parser.add_argument("--json", type=Path, help="append the result to this file, one JSON object per line")
    args = parser.parse_args()
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    precision = [f"train.amp.enabled={args.amp}"]
    name, overrides = alone_config(args.config)
    alone = trainer(name, args.size, args.batch, [*overrides, *precision])
    mokd = trainer(args.config, args.size, args.batch, precision)
    images = next(iter(mokd.data_loader))
    calls: dict[str, Callable[[], object]] = {
        "student step": lambda: step(alone),
        "teacher forward": lambda: teacher_forward(mokd, images, args.amp),
        "MoKD step": lambda: step(mokd, update_every=1),
        "MoKD step without update": lambda: step(mokd, update_every=1_000_000),
    }
    rounds: list[dict[str, float]] = []
    for index in range(args.warmup + args.rounds):
        clock = time.process_time if args.cpu_time else time.perf_counter
        times = {name: seconds(call, clock) for name, call in calls.items()}
        print(
            f"round {index + 1 - args.warmup:2d}: " + ", ".join(f"{n} {t:.3f} s" for n, t in times.items()),
            flush=True,
        )
        if index >= args.warmup:
            rounds.append(times)

    machine = describe()
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()))
    print(
        f"{args.config}, {args.batch} x 3 x {args.size} x {args.size}, medians of {args.rounds} rounds"
        f"{' of CPU seconds' if args.cpu_time else ''}\n"
    )
    print("| | seconds | images per second |\n|---|---|---|")
    for name in calls:
        median = statistics.median(r[name] for r in rounds)
        print(f"| {name} | {median:.3f} | {args.batch / median:.2f} |")
    ratios = {
        "update_every=1": [r["MoKD step"] / (r["student step"] + r["teacher forward"]) for r in rounds],
        "update_every=10": [
            (r["MoKD step"] + 9 * r["MoKD step without update"])
            / 10
            / (r["student step"] + r["teacher forward"])
            for r in rounds
        ],
    }
    print("\n| MoKD / (student + teacher) | median | min | max |\n|---|---|---|---|")
    for name, values in ratios.items():
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    if args.json:
        with args.json.open("a") as file:
            record = {
                "benchmark": "train_step",
                **vars(args),
                "json": None,
                "machine": machine,
                "rounds": rounds,
            }
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
