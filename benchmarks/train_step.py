#!/usr/bin/env python
"""Seconds of a plain student step, a teacher forward and a MoKD step, MoKD's ratio to the first two together, and where
a MoKD step's time goes.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --size 512 --batch 4 --config mokd_vidt_tiny_from_small
    python benchmarks/train_step.py --size 224 --batch 8 --config mokd_deit_tiny --flops

All run in one process, in turn (harness.py), through the trainer and the configs that train_net.py uses; random images
and weights, so loading data costs nothing here. ``update_every=10`` is the mean over a cycle: one step with the second
forward and nine without. The parts are called by themselves, on what a step gives them; "the rest" is what they leave
of the MoKD step. ``--flops`` counts the multiply-adds of student and teacher (F_s, F_t): a backward pass has twice
those of its forward, so (3 F_s + F_t + F_s) / (3 F_s + F_t) is the least that a step with a second forward can cost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyCall as L
from harness import Spread, measure, options_of, parser_of, table
from torch import Tensor, nn
from training import bare_trainer, random_scenes, step

from mokd_det.classification import ClassificationBatch
from mokd_det.config import load_config
from mokd_det.distillation.taps import TapValue
from mokd_det.engine.trainer import MoKDTrainer
from mokd_det.evaluation.flop_count import count_flops
from mokd_det.layers.tap_point import FeatureMap

CONFIGS = Path(__file__).parents[1] / "configs"
CLASSES = 1000


def labelled_batches(size: int, batch: int) -> Iterator[ClassificationBatch]:
    """One fixed batch of random images with smoothed labels, for ever."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (batch,), generator=generator)
    targets = 0.9 * torch.nn.functional.one_hot(labels, CLASSES) + 0.1 / CLASSES
    images = torch.randn(batch, 3, size, size, generator=generator)
    names = [f"random {index}" for index in range(batch)]
    return repeat(ClassificationBatch(images, targets, labels, torch.arange(batch), names))


def batches(size: int, batch: int) -> Iterator[list[dict]]:
    """One fixed batch of random images with eight objects each, for ever."""
    return repeat(random_scenes(batch, size, size))


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
    cfg = load_config(str(find_config(config)), overrides)
    make = labelled_batches if classifies(config) else batches
    cfg.dataloader.train = L(make)(size=size, batch=batch)
    return bare_trainer(cfg)


def step_with(trained: MoKDTrainer, update_every: int) -> None:
    """One step with this ``update_every`` of the balancer."""
    trained.balancer.update_every = update_every
    step(trained)


def teacher_forward(trained: MoKDTrainer, images: object, amp: bool) -> None:
    """What a step does before the student's forward, in the training's precision."""
    with torch.autocast(trained.device.type, dtype=torch.bfloat16, enabled=amp):
        trained.module.prepare_batch(images)


class Parts:
    """The parts of a MoKD step as calls by themselves, on one batch."""

    def __init__(self, trained: MoKDTrainer, images: Any) -> None:
        self.trained, self.model = trained, trained.module
        with trained.precision.autocast():
            self.batch = self.model.prepare_batch(images)
        trained.guard.begin(0, ())
        self.forward = trained._forward(self.batch, 0)
        with trained.precision.autocast(), self._without_method() as self.student_taps:
            self.model(self.batch)

    @contextmanager
    def _without_method(self) -> Iterator[dict[str, TapValue]]:
        """The model without the method's losses; yields the student's taps of the latest forward, cut off from it."""
        taken: dict[str, TapValue] = {}

        def keep(student: Mapping[str, TapValue], *_: Any) -> dict[str, Tensor]:
            taken.update({name: _cut_off(value) for name, value in student.items()})
            return {}

        method, self.model.method.forward = self.model.method.forward, keep
        try:
            yield taken
        finally:
            self.model.method.forward = method

    def calls(self) -> dict[str, Callable[[], object]]:
        """Name → what it does."""
        return {
            "student forward": self.student,
            "student forward and backward": lambda: self.student().backward(),
            "method forward": self.method,
            "method forward and backward": lambda: self.method().backward(),
            "check, clip, optimiser": self.optimise,
            "retraction": self.model.after_step,
            "second forward": self.again,
        }

    def student(self) -> Tensor:
        """The student's losses, matching included."""
        with self.trained.precision.autocast(), self._without_method():
            return torch.stack(list(self.model(self.batch).values())).sum()

    def method(self) -> Tensor:
        """The method's losses (MoKD: the subspace heads)."""
        with self.trained.precision.autocast():
            return torch.stack(
                list(self.model.method(self.student_taps, self.batch.teacher_taps).values())
            ).sum()

    def optimise(self) -> None:
        """What follows the backward pass, with gradients of any kind."""
        for parameter in self.trained._trained_parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        trained = [p for group in self.trained.optimizer.param_groups for p in group["params"]]
        self.trained.guard.watch_gradients(trained)
        if self.trained._clip is not None:
            nn.utils.clip_grad_norm_(trained, **self.trained._clip)
        self.trained.optimizer.step()

    @torch.no_grad()
    def again(self) -> Tensor:
        """The forward that the amortised update takes after the step."""
        return self.forward()


def _cut_off(value: TapValue) -> TapValue:
    if isinstance(value, list):
        return [
            FeatureMap(level.tensor.detach().requires_grad_(), level.padding_mask, level.stride)
            for level in value
        ]
    return value.detach().requires_grad_()


def shares(figure: Callable[[Callable[[Mapping[str, float]], float]], Spread]) -> list[dict[str, str]]:
    """The split of a MoKD step as rows of a table."""
    parts: dict[str, Callable[[Mapping[str, float]], float]] = {
        "teacher forward": lambda s: s["teacher forward"],
        "student forward": lambda s: s["student forward"],
        "student backward": lambda s: s["student forward and backward"] - s["student forward"],
        "subspace heads, forward": lambda s: s["method forward"],
        "subspace heads, backward": lambda s: s["method forward and backward"] - s["method forward"],
        "check, clip, optimiser": lambda s: s["check, clip, optimiser"],
        "retraction": lambda s: s["retraction"],
        "second forward": lambda s: s["second forward"],
    }

    def share(part: Callable[[Mapping[str, float]], float], whole: str, s: Mapping[str, float]) -> float:
        return part(s) / s[whole]

    rest = lambda s: s["MoKD step"] - sum(part(s) for part in parts.values())  # noqa: E731
    rows = []
    for name, part in {**parts, "the rest": rest}.items():
        rows.append(
            {
                "part": name,
                "s": f"{figure(part).median:.4f}",
                "of the MoKD step": f"{figure(partial(share, part, 'MoKD step')).median:.1%}",
                "of the student step": f"{figure(partial(share, part, 'student step')).median:.1%}",
            }
        )
    return rows


def flops(trained: MoKDTrainer, images: Any) -> tuple[float, float]:
    """Multiply-adds of one image's forward, student's and teacher's, in evaluation."""
    counted = []
    model = trained.module
    for part in (model.student, model.teacher):
        training = part.training
        given = images.images[:1] if isinstance(images, ClassificationBatch) else images[:1]
        network = part.network if isinstance(images, ClassificationBatch) else part
        counted.append(count_flops(network.eval(), (given,)).total / 1e9)
        part.train(training)
    return counted[0], counted[1]


def main() -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add(
        "--config", default="mokd_vidt_nano", help="a distillation config of configs/COCO or configs/ImageNet"
    )
    add("--size", type=int, default=256, help="side of the square images in pixels")
    add("--batch", type=int, default=2, help="images per step")
    add("--amp", action="store_true", help="mixed precision (bfloat16)")
    add("--flops", action="store_true", help="count multiply-adds and give the bound by them")
    add("overrides", nargs="*", help="KEY=VALUE of the distillation config, such as model.method.n=256")
    args = options_of(parser)
    logging.getLogger("detectron2").setLevel(logging.ERROR)

    precision = [f"train.amp.enabled={args.amp}"]
    name, overrides = alone_config(args.config)
    alone = trainer(name, args.size, args.batch, [*overrides, *precision])
    mokd = trainer(args.config, args.size, args.batch, [*precision, *args.overrides])
    images = next(iter(mokd.data_loader))
    step(mokd)
    measured = measure(
        {
            "student step": lambda: step(alone),
            "teacher forward": lambda: teacher_forward(mokd, images, args.amp),
            "MoKD step": lambda: step_with(mokd, 1),
            "MoKD step without update": lambda: step_with(mokd, 1_000_000),
            **Parts(mokd, images).calls(),
        },
        args,
    )
    ratios = {
        "update_every=1 (the paper's setting)": lambda s: (
            s["MoKD step"] / (s["student step"] + s["teacher forward"])
        ),
        "update_every=10": lambda s: (
            (s["MoKD step"] + 9 * s["MoKD step without update"])
            / 10
            / (s["student step"] + s["teacher forward"])
        ),
        "the same plus a bare student forward": lambda s: (
            1 + s["student forward"] / (s["student step"] + s["teacher forward"])
        ),
    }
    further: dict[str, Any] = {name: measured.derived(ratio).as_dict() for name, ratio in ratios.items()}
    rows = [
        {"MoKD / (student + teacher)": name, **{key: f"{value:.3f}" for key, value in further[name].items()}}
        for name in ratios
    ]
    if args.flops:
        student, teacher = flops(mokd, images)
        further["multiply-adds"] = {"student": student, "teacher": teacher}
        bound = student / (3 * student + teacher)
        for name, every in (("bound by multiply-adds, update_every=1", 1), ("the same, update_every=10", 10)):
            text = f"{1 + bound / every:.3f}"
            rows.append({"MoKD / (student + teacher)": name, "median": text, "min": "", "max": ""})
    measured.report(
        "train_step",
        settings={
            "config": " ".join([args.config, *args.overrides]),
            "batch": f"{args.batch} x 3 x {args.size} x {args.size}",
            "amp": args.amp,
        },
        json_file=args.json,
        further=further,
    )
    print("\n" + table(rows))
    print("\n" + table(shares(measured.derived)))
    if args.flops:
        print(f"\n10⁹ multiply-adds per image: student {student:.2f}, teacher {teacher:.2f}")


if __name__ == "__main__":
    main()
