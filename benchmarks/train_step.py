#!/usr/bin/env python
"""Seconds of a plain student step, a teacher forward and a MoKD step, and MoKD's ratio to the first two together.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --size 512 --batch 4 --config mokd_vidt_tiny_from_small

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

from mokd_det.engine import load_config
from mokd_det.engine.build import build_trainer
from mokd_det.engine.train_settings import TrainSettings
from mokd_det.engine.trainer import MoKDTrainer

CONFIGS = Path(__file__).parents[1] / "configs" / "COCO"


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


def trainer(config: str, size: int, batch: int, overrides: list[str]) -> MoKDTrainer:
    """The trainer of a COCO config on random images, without hooks and checkpoints."""
    cfg = load_config(str(CONFIGS / f"{config}.py"), ["train.init_checkpoint=", *overrides])
    if "teacher" in cfg.model:
        cfg.model.teacher_checkpoint = ""
    cfg.dataloader.train = L(batches)(size=size, batch=batch)
    built = build_trainer(cfg, TrainSettings.from_config(OmegaConf.to_container(cfg.train, resolve=True)))
    built.model.train()
    built.storage, built.iter, built.max_iter = EventStorage(), 0, 10**9
    return built


def step(trained: MoKDTrainer) -> None:
    """One optimiser step, as the training loop runs it."""
    with trained.storage:
        trained.run_step()
    trained.storage.step()
    trained.iter += 1


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call; on CUDA until the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="mokd_vidt_nano", help="a distillation config of configs/COCO")
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
    parser.add_argument("--json", type=Path, help="append the result to this file, one JSON object per line")
    args = parser.parse_args()
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    alone = trainer("vidt_" + args.config.split("_")[2], args.size, args.batch, [])
    mokd = trainer(args.config, args.size, args.batch, [])
    sparse = trainer(args.config, args.size, args.batch, ["balancer.update_every=1000000"])
    step(sparse)  # iteration 0 updates; none of the measured ones does
    images = next(iter(batches(args.size, args.batch)))
    calls: dict[str, Callable[[], object]] = {
        "student step": lambda: step(alone),
        "teacher forward": lambda: mokd.module.prepare_batch(images),
        "MoKD step": lambda: step(mokd),
        "MoKD step without update": lambda: step(sparse),
    }
    rounds: list[dict[str, float]] = []
    for index in range(args.warmup + args.rounds):
        times = {name: seconds(call) for name, call in calls.items()}
        print(
            f"round {index + 1 - args.warmup:2d}: " + ", ".join(f"{n} {t:.3f} s" for n, t in times.items()),
            flush=True,
        )
        if index >= args.warmup:
            rounds.append(times)

    machine = describe()
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{args.config}, {args.batch} x 3 x {args.size} x {args.size}, medians of {args.rounds} rounds\n")
    print("| | seconds |\n|---|---|")
    for name in calls:
        print(f"| {name} | {statistics.median(r[name] for r in rounds):.3f} |")
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
