"""The benchmarks run from end to end on next to nothing; what they time is not looked at."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.mark.parametrize(
    ("name", "arguments", "rows"),
    [
        ("coco_evaluation", "--images 12 --detections 9 --classes 3", ["pycocotools", "hotcoco"]),
        (
            "data_loading",
            "--images 4 --workers 0 --batches 1",
            ["read and decode, pil", "read and decode, opencv", "detection, train, pil", "0 workers, pil"],
        ),
        ("model_forward", "--only vidt_nano --sizes 64x96", ["vidt_nano, 64 x 96"]),
        (
            "transformers_step",
            "--family detr --size 96 --width 16 --layers 2",
            ["bare", "plain", "heads", "MoKD"],
        ),
    ],
)
def test_table_and_record(
    name: str,
    arguments: str,
    rows: list[str],
    benchmark_module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = tmp_path / "figures.jsonl"
    given = [*arguments.split(), "--rounds", "1", "--warmup", "0", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *given])
    benchmark_module(name).main()
    shown = capsys.readouterr().out
    for row in rows:
        assert f"| {row} " in shown
    (record,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert record["benchmark"] == name and record["command"].startswith(f"python benchmarks/{name}.py ")
    assert record["figures"]["summaries"]


def test_generated_predictions_are_evaluated_alike(benchmark_module: Callable[[str], ModuleType]) -> None:
    module = benchmark_module("coco_evaluation")
    truth, boxes = module.generate(30, 20, 4)
    assert len(boxes) == 600 and len(truth.image_names) == 30
    stats = [module.evaluate_boxes(truth, boxes, backend=name).stats for name in module.BACKENDS]
    assert (stats[0] == stats[1]).all() and 0 < stats[0][0] < 0.9
