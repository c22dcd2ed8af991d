#!/usr/bin/env python
"""What this package adds to a step of a Hugging Face detector: plain steps against transformers alone, MoKD against its
parts.

    python benchmarks/transformers_step.py
    python benchmarks/transformers_step.py --family detr --parts plain --clock cpu --rounds 200

In one process, in turn (harness.py): "bare" is transformers' own model with labels, backward, clipping at a norm of 1
(what transformers' Trainer does unasked) and AdamW; "plain" the same model as ``TransformersDetector`` in the trainer;
"teacher" a D-FINE's inference; "MoKD" a step of the model from that D-FINE with the second forward in every step,
"second" that forward alone, and "heads" the method's forward and backward on what both models said. Asked for: plain ≤
1.03 × bare, and MoKD ≤ 1.05 × the bound of docs/benchmarks.md, plain + teacher + second + heads. Random weights and
images, so loading costs nothing.

Ratios are taken within each round and told as the median over the rounds with its quartiles; --clock cpu is the fair
one beside other work. Told besides: what plain steps spend outside of transformers' forward, of backward and of the
optimiser, as the difference to bare steps, which varies far less than the whole.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from detectron2.utils.events import EventStorage
from harness import Measured, measure, options_of, parser_of
from torch import nn
from training import random_scenes

from mokd_det.balancing import Amortized, FixedWeights, Objectives
from mokd_det.distillation import Distiller, HungarianTokenMatching, MoKD
from mokd_det.engine import MoKDTrainer
from mokd_det.modeling import TransformersDetector

TASK = ["loss_[!d]*", "loss_ddf*"]
CLIP = {"max_norm": 1.0, "norm_type": 2.0}
FAMILIES = ("rt_detr_v2", "d_fine", "detr")


def detector(kind: str, width: int, layers: int, size: int) -> TransformersDetector:
    """A small detector of 80 classes on a ResNet of one block per stage."""
    backbone = {
        "model_type": "resnet",
        "embedding_size": width // 2,
        "hidden_sizes": [width // 2, width, width, width],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage4"] if kind == "detr" else ["stage2", "stage3", "stage4"],
    }
    config = {
        "model_type": kind,
        "num_labels": 80,
        "backbone_config": backbone,
        "d_model": width,
        "encoder_ffn_dim": 2 * width,
        "decoder_ffn_dim": 2 * width,
        "decoder_layers": layers,
        "num_queries": 100,
    }
    if kind == "detr":
        config |= {"encoder_layers": layers, "auxiliary_loss": True}
    else:
        config |= {"encoder_in_channels": [width] * 3, "decoder_in_channels": [width] * 3}
        config |= {"encoder_hidden_dim": width, "num_denoising": 50}
    torch.manual_seed(0)
    return TransformersDetector(config, image_size=size)


def trainer(
    model: nn.Module, batch: Any, objectives: dict[str, list[str]], balancer: Any, storage: EventStorage
) -> MoKDTrainer:
    """Ready for :meth:`~mokd_det.engine.MoKDTrainer.run_step`."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    made = MoKDTrainer(
        model.train(),
        itertools.repeat(batch),
        optimizer,
        objectives=Objectives(objectives),
        balancer=balancer,
        clip_grad=CLIP,
    )
    made.storage, made.iter, made.max_iter = storage, 0, 10**9
    return made


def leaf(value: Any) -> Any:
    """A tap without its past, which takes a gradient."""
    if isinstance(value, list):
        return [replace(level, tensor=level.tensor.detach().requires_grad_()) for level in value]
    return value.detach().requires_grad_()


def distilled(
    student: TransformersDetector, teacher: TransformersDetector, batch: Any, storage: EventStorage
) -> dict[str, Callable[[], object]]:
    """The parts of a MoKD step, and the step."""
    teacher.eval().requires_grad_(False)
    distiller = Distiller(
        student, teacher, MoKD(), token_matching=HungarianTokenMatching(), tap_pairing="common"
    )
    objectives = {"distill": ["loss_distill_*"], "task": TASK}
    mokd = trainer(distiller, batch, objectives, Amortized(), storage)
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

    return {"teacher": teacher_forward, "second": second_forward, "heads": heads, "MoKD": mokd.run_step}


class Outside:
    """CPU seconds of each step that are spent outside of transformers' forward, of backward and of the optimiser."""

    def __init__(
        self, step: Callable[[], object], network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.seconds: list[float] = []
        self._step, self._inside = step, 0.0
        # On these instances alone: their classes stay as they are, so mypy's warning does not apply.
        network.forward = self._timed(network.forward)  # type: ignore[method-assign]
        optimizer.step = self._timed(optimizer.step)  # type: ignore[method-assign]
        self._backward = self._timed(torch.autograd.backward)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.process_time()
            try:
                return call(*arguments, **named)
            finally:
                self._inside += time.process_time() - begun

        return timed

    def __call__(self) -> None:
        """A step."""
        with patch("torch.autograd.backward", self._backward):
            self._inside, begun = 0.0, time.process_time()
            self._step()
            self.seconds.append(time.process_time() - begun - self._inside)


def told(measured: Measured, name: str, parts: Sequence[str]) -> str:
    """The ratio of a call to the sum of others, taken in each round."""

    def ratio(seconds: Mapping[str, float]) -> float:
        return seconds[name] / sum(seconds[part] for part in parts)

    return f"{name} / ({' + '.join(parts)}): {middle(measured.over_rounds(ratio), '.3f')}"


def middle(values: Sequence[float], form: str) -> str:
    """Median and quartiles."""
    low, half, high = statistics.quantiles(values, n=4) if len(values) > 1 else 3 * list(values)
    return f"{half:{form}} (quartiles {low:{form}} and {high:{form}})"


def main() -> None:
    """Run the command."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--family", choices=FAMILIES, default=FAMILIES[0], help="(%(default)s)")
    add("--parts", choices=("plain", "all"), default="all", help="plain: no teacher")
    add("--size", type=int, default=256, help="side of the images (%(default)s)")
    add("--batch", type=int, default=2, help="images per step (%(default)s)")
    add("--width", type=int, default=64, help="channels of the student (%(default)s)")
    add("--layers", type=int, default=3, help="decoder layers (%(default)s)")
    options = options_of(parser)
    batch = random_scenes(options.batch, options.size, options.size, objects=4)
    made = (options.width, options.layers, options.size)

    bare = detector(options.family, *made)
    pixels, labels = bare.preprocess(batch)[0], bare.labels(batch)
    network = bare.detector.train()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def bare_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        network(pixel_values=pixels, labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(trained, **CLIP)
        optimizer.step()

    with EventStorage() as storage:
        plain = trainer(detector(options.family, *made), batch, {"task": TASK}, FixedWeights(), storage)
        outside = [
            Outside(bare_step, network, optimizer),
            Outside(plain.run_step, plain.model.detector, plain.optimizer),
        ]
        calls: dict[str, Callable[[], object]] = dict(zip(("bare", "plain"), outside, strict=True))
        if options.parts == "all":
            teacher = detector("d_fine", 2 * options.width, options.layers, options.size)
            calls |= distilled(detector(options.family, *made), teacher, batch, storage)
        measured = measure(calls, options, baseline="bare")
    measured.report("transformers_step", settings=vars(options), json_file=options.json)
    print("\n" + told(measured, "plain", ["bare"]))
    own = [
        1e3 * (ours - theirs) for theirs, ours in zip(*(part.seconds[options.warmup :] for part in outside))
    ]
    print(f"plain - bare outside of forward, backward and optimiser, CPU ms: {middle(own, '.2f')}")
    if options.parts == "all":
        for parts in (["plain", "teacher", "second"], ["plain", "teacher", "second", "heads"]):
            print(told(measured, "MoKD", parts))


if __name__ == "__main__":
    main()
