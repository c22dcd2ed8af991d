#!/usr/bin/env python
"""What a teacher in half precision says differently, what that does to its AP, and what it saves.

    python benchmarks/teacher_precision.py --checkpoint output/quickstart/teacher/student_final.pth --evaluate
    python benchmarks/teacher_precision.py --config COCO/vidt_base.py --size 256 --batch 2

The model of the config is the teacher. Deviations are ‖t − t32‖ / ‖t32‖ of its taps, t32 those in float32: of a forward
under autocast (``model.teacher_precision``), and of rounding the float32 taps (``model.teacher_cache.precision``).
Timed are its forwards in both ways of leaving the graph out: inference mode needs a copy of the taps, since a student's
graph takes none of its tensors. AP is that of the config's evaluation, on --dataset.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from harness import measure, options_of, parser_of, table
from torch import Tensor, nn

from mokd_det.checkpoint import load_into
from mokd_det.config import load_config
from mokd_det.distillation import DEFAULT_TAPS, TapRecorder
from mokd_det.engine.setup import pick_device
from mokd_det.engine.testing import evaluate

CONFIGS = Path(__file__).parents[1] / "configs"
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class UnderAutocast(nn.Module):
    """A model whose forward runs in mixed precision."""

    def __init__(self, model: nn.Module, kind: str, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.kind, self.dtype = model, kind, dtype

    def forward(self, batch: Any) -> Any:
        if self.dtype is None:
            return self.model(batch)
        with torch.autocast(self.kind, dtype=self.dtype):
            return self.model(batch)


def taps_of(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The taps of one forward as one tensor for each name."""
    with TapRecorder(getattr(model, "model", model), DEFAULT_TAPS) as recorder:
        model(batch)
    return {
        name: torch.cat([level.tensor.flatten() for level in value]) if isinstance(value, list) else value
        for name, value in recorder.values.items()
    }


def deviation(exact: Tensor, other: Tensor) -> float:
    return float((exact - other.float()).norm() / exact.norm())


def main() -> None:
    parser = parser_of(__doc__, rounds=15, warmup=3)
    add = parser.add_argument
    add("--config", default="quickstart/teacher.py", help="below configs/ (%(default)s)")
    add("--checkpoint", default="", help="its weights; without: random ones")
    add("--evaluate", action="store_true", help="AP in each precision")
    add("--dataset", default="digits_test", help="what is evaluated on (%(default)s)")
    add("--size", type=int, default=64, help="side of the square images in pixels (%(default)s)")
    add("--batch", type=int, default=16, help="images per forward (%(default)s)")
    args = options_of(parser)
    for name in ("detectron2", "mokd_det"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cfg = load_config(str(CONFIGS / args.config), [f"dataloader.test.dataset={args.dataset}"])
    device = pick_device("auto")
    model = instantiate(cfg.model).to(device).eval().requires_grad_(False)
    if args.checkpoint:
        load_into(model, args.checkpoint, what="teacher checkpoint")
    models = {"float32": UnderAutocast(model, device.type, None)}
    models.update((name, UnderAutocast(model, device.type, dtype)) for name, dtype in HALVES.items())
    generator = torch.Generator().manual_seed(0)
    shape = (3, args.size, args.size)
    batch = [
        {"image": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}
        for _ in range(args.batch)
    ]
    if args.evaluate:
        batch = next(iter(instantiate(cfg.dataloader.test)))

    def rows_of(name: str) -> dict[str, str]:
        row = {"": name}
        with torch.no_grad():
            exact, found = taps_of(models["float32"], batch), taps_of(models[name], batch)
        for tap, value in exact.items():
            row[f"{tap}, forward"] = f"{deviation(value, found[tap]):.1e}"
            stored = value.to(HALVES.get(name, torch.float32))
            row[f"{tap}, rounded"] = f"{deviation(value, stored):.1e}"
        if args.evaluate:
            scores = evaluate(cfg.dataloader, models[name].eval())["bbox"]
            row["AP"] = f"{scores['AP']:.2f}"
        return row

    rows = [rows_of(name) for name in models]

    def forward(name: str, context: Callable[[], Any], copy: bool) -> Callable[[], object]:
        def call() -> object:
            with context():
                taps = taps_of(models[name], batch)
            return [value.clone() for value in taps.values()] if copy else taps

        return call

    measured = measure(
        {
            "float32": forward("float32", torch.no_grad, False),
            "float32, inference mode": forward("float32", torch.inference_mode, False),
            "float32, inference mode and copies": forward("float32", torch.inference_mode, True),
            "bfloat16": forward("bfloat16", torch.no_grad, False),
        },
        args,
        baseline="float32",
    )
    names = ("config", "checkpoint", "size", "batch", "threads")
    settings = {name: getattr(args, name) for name in names}
    measured.report("teacher_precision", settings=settings, json_file=args.json, further={"taps": rows})
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
