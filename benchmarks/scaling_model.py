#!/usr/bin/env python
"""What a MoKD step costs on one and several GPUs, computed from counts and stated assumptions; and memory, counted.

    python benchmarks/scaling_model.py
    python benchmarks/scaling_model.py --tflops 150 --bus 300 --gpus 1 4 8 --batch 2 --configs mokd_vidt_nano
    python benchmarks/scaling_model.py --activations --size 400 672 --batches 1

Nothing here is timed. Counted are parameters, multiply-adds of a forward pass at --size, and with --activations the
bytes that one training forward keeps for its backward pass (each storage once). From them:

    work of a step  = images x 2 x multiply-adds x (3 student + 1 teacher + 1/update_every student)
    compute         = work / --tflops
    exchange        = 2 (n - 1) / n x 4 bytes x trainable parameters / --bus; --overlap of the backward hides it
    step            = compute + what the backward does not hide + reductions of the balancer

Three forwards' work for the student is its forward and a backward of twice that. The amortised balancer adds two
reductions of K numbers (--latency each); the exact one reduces a gradient per objective, and hides none of it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from harness import RESULTS, append_record, heading, table
from memory import kept_bytes
from torch import nn
from training import random_scenes

from mokd_det.config import load_config
from mokd_det.engine.measured_model import build_measured, example_inputs, measured_section
from mokd_det.evaluation.flop_count import count_flops

CONFIGS = Path(__file__).parents[1] / "configs" / "COCO"
DISTILLED = ("mokd_vidt_nano", "mokd_vidt_nano_from_small", "mokd_vidt_tiny", "mokd_vidt_small")


@dataclass(frozen=True)
class Counts:
    """Of one config; multiply-adds of a forward pass of one image.

    Attributes:
        student: trainable parameters of the student.
        method: trainable parameters of the method's own modules.
        teacher: parameters of the teacher.
        student_work: multiply-adds.
        teacher_work: multiply-adds.
    """

    student: int
    method: int
    teacher: int
    student_work: int
    teacher_work: int

    @property
    def trained(self) -> int:
        """Parameters with gradients: what an all-reduce carries."""
        return self.student + self.method


@dataclass(frozen=True)
class Machine:
    """What is assumed of it.

    Attributes:
        tflops: floating-point operations per second that are reached, 10¹².
        bus: bytes per second of an all-reduce's busiest link, 10⁹.
        latency: seconds of the reduction of a few numbers.
        overlap: share of the backward pass under which the exchange of gradients is hidden.
    """

    tflops: float
    bus: float
    latency: float
    overlap: float


@dataclass(frozen=True)
class Step:
    """Seconds of a step on each of ``gpus`` GPUs.

    Attributes:
        compute: forwards and backward.
        exposed: of the exchange of gradients, what is not hidden.
        balancer: reductions of its own.
        teacher_share: of the compute.
    """

    gpus: int
    batch: int
    compute: float
    exposed: float
    balancer: float
    teacher_share: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.compute + self.exposed + self.balancer

    @property
    def images_per_second(self) -> float:
        """Of all GPUs."""
        return self.gpus * self.batch / self.seconds


def predict(
    counts: Counts,
    machine: Machine,
    *,
    gpus: int,
    batch: int,
    update_every: int = 1,
    objectives: int = 2,
    exact: bool = False,
) -> Step:
    """The model of the module's head.

    Args:
        batch: images per GPU.
        exact: a balancer with a backward pass and a reduced gradient for each objective.
    """
    rate = machine.tflops * 1e12 / (2 * batch)
    forward, teacher = counts.student_work / rate, counts.teacher_work / rate
    # An exact balancer walks back once for each objective, and evaluates nothing again.
    backward = 2 * forward * (objectives if exact else 1)
    again = 0.0 if exact else forward / update_every
    ring = 2 * (gpus - 1) / gpus / (machine.bus * 1e9)
    several = gpus > 1
    if exact:
        exposed, balancer = 0.0, ring * 4 * (objectives * counts.student + counts.method)
    else:
        exposed = max(0.0, ring * 4 * counts.trained - machine.overlap * backward)
        balancer = 2 * machine.latency if several else 0.0
    compute = forward + backward + teacher + again
    return Step(gpus, batch, compute, exposed, balancer, teacher / compute)


def config(name: str) -> Any:
    """A config of configs/COCO that needs no file."""
    cfg = load_config(str(CONFIGS / f"{name}.py"), [])
    cfg.model.teacher_checkpoint = ""
    return cfg


def count(name: str, size: tuple[int, int]) -> Counts:
    """Everything that a config's step depends on."""
    cfg = config(name)
    model = instantiate(cfg.model)
    return Counts(
        student=trainable(model.student),
        method=trainable(model.method),
        teacher=sum(parameter.numel() for parameter in model.teacher.parameters()),
        student_work=multiply_adds(cfg, False, size),
        teacher_work=multiply_adds(cfg, True, size),
    )


_counted: dict[tuple[str, tuple[int, int]], int] = {}


def multiply_adds(cfg: Any, teacher: bool, size: tuple[int, int]) -> int:
    """Of a forward pass of one image; counted once for each model, which several configs may share."""
    key = (str(measured_section(cfg, teacher)), size)
    if key not in _counted:
        model = build_measured(cfg, teacher=teacher)
        inputs = example_inputs(cfg, model, 1, size, torch.device("cpu"))
        _counted[key] = count_flops(model, inputs).total
    return _counted[key]


def trainable(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def activation_bytes(name: str, size: tuple[int, int], batch: int) -> int:
    """Bytes that a training forward in float32 keeps for its backward pass, parameters not among them."""
    model = instantiate(config(name).model).train()
    prepared = model.prepare_batch(random_scenes(batch, *size))
    return kept_bytes(lambda: model(prepared), (*model.parameters(), *model.buffers()))


def show_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Print the tables of counts and of steps; returns the figures."""
    machine = Machine(options.tflops, options.bus, options.latency, options.overlap)
    size = tuple(options.size)
    counted = {name: count(name, size) for name in options.configs}
    rows = [
        {
            "config": name,
            "student, M": f"{counts.student / 1e6:.2f}",
            "method, M": f"{counts.method / 1e6:.2f}",
            "all-reduce, MB": f"{4 * counts.trained / 1e6:.1f}",
            "teacher, M": f"{counts.teacher / 1e6:.1f}",
            "student, GMAC": f"{counts.student_work / 1e9:.1f}",
            "teacher, GMAC": f"{counts.teacher_work / 1e9:.1f}",
            # float32 weights, gradients and AdamW's two averages; the teacher's weights alone
            "weights and optimiser, MB": f"{(16 * counts.trained + 4 * counts.teacher) / 1e6:.0f}",
        }
        for name, counts in counted.items()
    ]
    print(table(rows) + "\n")
    steps: dict[str, list[Step]] = {}
    lines = []
    for name, counts in counted.items():
        for title, settings in (
            ("amortised", {"update_every": 1}),
            ("amortised, update_every=10", {"update_every": 10}),
            ("exact", {"exact": True}),
        ):
            alone = predict(counts, machine, gpus=1, batch=options.batch, **settings)
            found = [predict(counts, machine, gpus=n, batch=options.batch, **settings) for n in options.gpus]
            steps[f"{name}, {title}"] = found
            lines += [
                {
                    "config": name,
                    "balancer": title,
                    "GPUs": str(step.gpus),
                    "ms / step": f"{1e3 * step.seconds:.1f}",
                    "teacher's share": f"{step.teacher_share:.0%}",
                    "exposed exchange, ms": f"{1e3 * (step.exposed + step.balancer):.2f}",
                    "images / s": f"{step.images_per_second:.0f}",
                    "efficiency": f"{step.images_per_second / alone.images_per_second / step.gpus:.1%}",
                }
                for step in found
            ]
    print(table(lines))
    return {
        "counts": {name: vars(counts) for name, counts in counted.items()},
        "steps": {
            name: [vars(step) | {"seconds": step.seconds} for step in found] for name, found in steps.items()
        },
    }


def show_activations(options: argparse.Namespace) -> dict[str, Any]:
    """Print what a training forward keeps; returns the figures."""
    size = tuple(options.size)
    figures = {
        name: {batch: activation_bytes(name, size, batch) for batch in options.batches}
        for name in options.configs
    }
    rows = [
        {
            "config": name,
            **{f"batch {batch}, MB": f"{found / 1e6:.0f}" for batch, found in by_batch.items()},
            "kB per pixel": f"{by_batch[options.batches[0]] / options.batches[0] / size[0] / size[1] / 1e3:.2f}",
        }
        for name, by_batch in figures.items()
    ]
    print(table(rows))
    return {"activation bytes": figures}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--configs", nargs="+", default=DISTILLED, metavar="NAME", help="of configs/COCO")
    add("--size", nargs=2, type=int, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    add("--gpus", nargs="+", type=int, default=(1, 4, 8), metavar="N")
    add("--batch", type=int, default=2, metavar="N", help="images per GPU (%(default)s)")
    add("--tflops", type=float, default=100.0, help="reached by each GPU (%(default)s)")
    add("--bus", type=float, default=200.0, help="GB/s of an all-reduce (%(default)s)")
    add("--latency", type=float, default=30e-6, help="seconds of a small one (%(default)s)")
    add("--overlap", type=float, default=0.8, help="share of the backward (%(default)s)")
    add("--activations", action="store_true", help="count memory instead; takes as much itself")
    add("--batches", nargs="+", type=int, default=(1, 2), metavar="N", help="for --activations")
    add("--json", type=Path, default=RESULTS, metavar="FILE", help="append the figures to it")
    options = parser.parse_args()
    settings = json.loads(json.dumps(vars(options), default=str))
    print(heading({key: value for key, value in settings.items() if key != "json"}) + "\n")
    figures = show_activations(options) if options.activations else show_steps(options)
    append_record(options.json, "scaling_model", settings, figures)


if __name__ == "__main__":
    main()
