#!/usr/bin/env python
"""What this package adds to a step of a Hugging Face detector: plain steps against transformers alone, MoKD against its
parts.

    python benchmarks/transformers_step.py
    python benchmarks/transformers_step.py --size 320 --batch 4 --layers 6 --rounds 15

In one process, in turn (harness.py): "bare" is transformers' own model with labels, backward and AdamW; "plain" the
same model as ``TransformersDetector`` in the trainer; "teacher" its inference; "MoKD" a step of RT-DETRv2 from D-FINE
with the second forward in every step, "second" that forward alone, and "heads" the method's forward and backward on
what both models said. Asked for: plain ≤ 1.03 × bare, and MoKD ≤ 1.05 × the bound of docs/benchmarks.md, plain +
teacher + second + heads. Random weights and images, so loading costs nothing.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from harness import add_arguments, run
from torch import nn
from training import random_scenes

from mokd_det.balancing import Amortized, FixedWeights, Objectives
from mokd_det.distillation import Distiller, HungarianTokenMatching, MoKD
from mokd_det.engine import MoKDTrainer
from mokd_det.modeling import TransformersDetector

TASK = ["loss_[!d]*", "loss_ddf*"]


def detector(kind: str, width: int, layers: int, size: int) -> TransformersDetector:
    """A small detector of 80 classes on a ResNet of one block per stage."""
    backbone = {
        "model_type": "resnet",
        "embedding_size": width // 2,
        "hidden_sizes": [width // 2, width, width, width],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    }
    config = {
        "model_type": kind,
        "num_labels": 80,
        "backbone_config": backbone,
        "encoder_in_channels": [width] * 3,
        "decoder_in_channels": [width] * 3,
        "encoder_hidden_dim": width,
        "d_model": width,
        "encoder_ffn_dim": 2 * width,
        "decoder_ffn_dim": 2 * width,
        "decoder_layers": layers,
        "num_queries": 100,
        "num_denoising": 50,
    }
    torch.manual_seed(0)
    return TransformersDetector(config, image_size=size)


def trainer(model: nn.Module, batch: Any, objectives: dict[str, list[str]], balancer: Any) -> MoKDTrainer:
    """Ready for :meth:`~mokd_det.engine.MoKDTrainer.run_step`."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    made = MoKDTrainer(
        model.train(),
        itertools.repeat(batch),
        optimizer,
        objectives=Objectives(objectives),
        balancer=balancer,
    )
    made.iter, made.max_iter = 0, 10**9
    return made


def leaf(value: Any) -> Any:
    """A tap without its past, which takes a gradient."""
    if isinstance(value, list):
        return [replace(level, tensor=level.tensor.detach().requires_grad_()) for level in value]
    return value.detach().requires_grad_()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256, help="side of the images (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="images per step (%(default)s)")
    parser.add_argument("--width", type=int, default=64, help="channels of the student (%(default)s)")
    parser.add_argument("--layers", type=int, default=3, help="decoder layers (%(default)s)")
    add_arguments(parser)
    options = parser.parse_args()
    batch = random_scenes(options.batch, options.size, options.size, objects=4)
    made = (options.width, options.layers, options.size)

    bare = detector("rt_detr_v2", *made)
    pixels, labels = bare.preprocess(batch)[0], bare.labels(batch)
    network = bare.detector.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)

    def bare_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        network(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()

    plain = trainer(detector("rt_detr_v2", *made), batch, {"task": TASK}, FixedWeights())
    teacher = detector("d_fine", 2 * options.width, options.layers, options.size).eval().requires_grad_(False)
    student = detector("rt_detr_v2", *made)
    distiller = Distiller(
        student, teacher, MoKD(), token_matching=HungarianTokenMatching(), tap_pairing="common"
    )
    objectives = {"distill": ["loss_distill_*"], "task": TASK}
    mokd = trainer(distiller, batch, objectives, Amortized())
    prepared = distiller.prepare_batch(batch)

    def teacher_forward() -> None:
        with torch.inference_mode():
            teacher(batch)

    def second_forward() -> None:
        with torch.no_grad():
            distiller.train()(prepared)

    seen: list[Any] = []
    hook = distiller.method.register_forward_pre_hook(lambda module, given: seen.append(given))
    distiller.train()(prepared)
    hook.remove()
    student_taps, teacher_taps, context = seen[0]
    # Leaves: the gradient ends where the student begins.
    student_taps = {name: leaf(value) for name, value in student_taps.items()}

    def heads() -> None:
        sum(distiller.method(student_taps, teacher_taps, context).values()).backward()

    with EventStorage() as storage:
        for each in (plain, mokd):
            each.storage = storage
        calls = {
            "bare": bare_step,
            "plain": plain.run_step,
            "teacher": teacher_forward,
            "second": second_forward,
            "heads": heads,
            "MoKD": mokd.run_step,
        }
        measured = run(
            calls, rounds=options.rounds, warmup=options.warmup, baseline="bare", clock=options.clock
        )
    measured.report("transformers_step", settings=vars(options), json_file=options.json)

    def times_of(parts: tuple[str, ...], seconds: Mapping[str, float]) -> float:
        return seconds["MoKD"] / sum(seconds[part] for part in parts)

    for parts in (("plain", "teacher", "second"), ("plain", "teacher", "second", "heads")):
        bound = measured.derived(partial(times_of, parts))
        print(
            f"MoKD / ({' + '.join(parts)}): {bound.median:.3f} ({bound.smallest:.3f} to {bound.largest:.3f})"
        )


if __name__ == "__main__":
    main()
