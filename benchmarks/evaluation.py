#!/usr/bin/env python
"""What the time of an evaluation goes into: loading, the model, keeping its boxes, the metrics; per image.

    python datasets/make_digits.py digits
    python benchmarks/evaluation.py --clock cpu
    python benchmarks/evaluation.py --config-file configs/COCO/vidt_nano.py --images 200

The parts run one after the other over the same images of the config's test set, with random weights (so that every
query that the model keeps is a false box: as many boxes as there can be). How the metrics' time grows to COCO's size:
coco_evaluation.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from detectron2.config import instantiate
from harness import measure, options_of, parser_of

from mokd_det.config import load_config
from mokd_det.engine.measured_model import build_measured


def main() -> None:
    parser = parser_of(__doc__, rounds=3, warmup=1)
    add = parser.add_argument
    add("--config-file", default="configs/quickstart/student.py", metavar="FILE")
    add("--images", type=int, default=100, metavar="N", help="at most (%(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = options_of(parser)
    cfg = load_config(options.config_file, [], training=False)
    cfg.dataloader.test.num_workers = 0
    model = build_measured(cfg).to(options.device)
    loader = instantiate(cfg.dataloader.test)
    evaluator = instantiate(cfg.dataloader.evaluator)
    evaluator.reset()
    batches: list[Any] = []
    outputs: list[Any] = []

    def load() -> None:
        batches.clear()
        count = 0
        for batch in loader:
            batches.append(batch)
            count += len(batch)
            if count >= options.images:
                return

    def forward() -> None:
        outputs.clear()
        outputs.extend(model(batch) for batch in batches)

    def keep() -> None:
        evaluator.reset()
        for batch, output in zip(batches, outputs, strict=True):
            evaluator.process(batch, output)

    def metrics() -> None:
        ids = [item["image_id"] for item in itertools.chain.from_iterable(batches)]
        evaluator.evaluate(img_ids=ids)

    calls = {"load": load, "model": forward, "keep boxes": keep, "metrics": metrics}
    with torch.inference_mode():
        # In this order each needs what the one before has left; later rounds may begin with any.
        for call in calls.values():
            call()
        measured = measure(calls, options)
    images = sum(len(batch) for batch in batches)
    whole = measured.derived(lambda seconds: sum(seconds.values()))
    milliseconds = {name: 1e3 * measured.seconds(name).median / images for name in calls}
    measured.report(
        "evaluation",
        settings={
            "config": options.config_file,
            "images": images,
            "ms / image": f"{1e3 * whole.median / images:.2f}",
        },
        json_file=options.json,
        columns={"ms / image": {name: f"{value:.3f}" for name, value in milliseconds.items()}},
    )


if __name__ == "__main__":
    main()
