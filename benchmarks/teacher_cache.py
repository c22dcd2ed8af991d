#!/usr/bin/env python
"""Seconds of a MoKD step with the teacher run anew, and with what it says read from a cache.

    python benchmarks/teacher_cache.py
    python benchmarks/teacher_cache.py --config COCO/mokd_vidt_nano.py --size 256 --batch 2 --precision float16

All kinds of steps run in one process, in turn, through the trainer and the configs that train_net.py uses; random
weights and a few batches of random images, which come back. "cached" reads all taps from files; "first time" computes
and adds them; "alone" is the student without a teacher.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.config import LazyCall as L
from harness import measure, options_of, parser_of
from training import bare_trainer, random_scenes, step

from mokd_det.balancing import FixedWeights
from mokd_det.config import load_config
from mokd_det.data.sampling import SampleKey
from mokd_det.data.view_key import view_key
from mokd_det.distillation import NoDistillation, TeacherCache
from mokd_det.engine.trainer import MoKDTrainer

CONFIGS = Path(__file__).parents[1] / "configs"
BATCHES = 4


def batches(size: int, batch: int, classes: int, fresh: bool) -> Iterator[list[dict[str, Any]]]:
    """A few batches of random images with six objects each, again and again; ``fresh``: as ever new views."""
    items = random_scenes(BATCHES * batch, size, size, objects=6, classes=classes)
    for index, item in enumerate(items):
        item["view_key"] = view_key(SampleKey(0, index, 0), item["image"])
    listed = [items[first : first + batch] for first in range(0, len(items), batch)]
    for number in itertools.count():
        chosen = listed[number % BATCHES]
        for item in chosen if fresh else ():
            image, _, digest = item["view_key"]
            item["view_key"] = (image, number, digest)
        yield chosen


def trainer(
    args: argparse.Namespace, cache: Path | None, alone: bool = False, fresh: bool = False
) -> MoKDTrainer:
    """The trainer of the config on random images, without hooks and checkpoints."""
    cfg = load_config(str(CONFIGS / args.config), [f"train.amp.enabled={args.amp}"])
    cfg.dataloader.train = L(batches)(
        size=args.size, batch=args.batch, classes="${...model.student.num_classes}", fresh=fresh
    )
    if cache is not None:
        cfg.model.teacher_cache = L(TeacherCache)(directory=str(cache), precision=args.precision)
    if alone:
        cfg.model.method, cfg.balancer = L(NoDistillation)(), L(FixedWeights)()
        cfg.objectives = {"task": ["loss_*"]}
    return bare_trainer(cfg)


def main() -> None:
    parser = parser_of(__doc__, rounds=9, warmup=BATCHES)
    add = parser.add_argument
    add(
        "--config",
        default="quickstart/mokd.py",
        help="a detector's distillation below configs/ (%(default)s)",
    )
    add("--size", type=int, default=64, help="side of the square images in pixels (%(default)s)")
    add("--batch", type=int, default=16, help="images per step (%(default)s)")
    add(
        "--precision",
        default="float16",
        choices=("float16", "bfloat16", "float32"),
        help="of the cache (%(default)s)",
    )
    add("--amp", action="store_true", help="mixed precision (bfloat16)")
    args = options_of(parser)
    logging.getLogger("detectron2").setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "kept")
        live, alone, cached = trainer(args, None), trainer(args, None, alone=True), trainer(args, kept)
        first = trainer(args, Path(folder, "added"), fresh=True)
        # Rounds of warm-up fill the cache: as many as there are batches.
        if args.warmup < BATCHES:
            parser.error(f"--warmup {args.warmup}: at least {BATCHES}, to fill the cache")
        images = next(iter(live.data_loader))

        measured = measure(
            {
                "live": lambda: step(live),
                "cached": lambda: step(cached),
                "first time": lambda: step(first),
                "alone": lambda: step(alone),
                "teacher forward": lambda: live.module.prepare_batch(images),
                "reading": lambda: cached.module.prepare_batch(images),
            },
            args,
            baseline="live",
        )
        kept_bytes = sum(file.stat().st_size for file in kept.glob("*.rows"))
        per_image = kept_bytes / (BATCHES * args.batch) / 1024
    names = ("config", "size", "batch", "precision", "amp", "threads")
    settings = {name: getattr(args, name) for name in names}
    measured.report(
        "teacher_cache", settings=settings, json_file=args.json, further={"KiB per image": per_image}
    )
    print(f"\n{per_image:.1f} KiB per image and view")


if __name__ == "__main__":
    main()
