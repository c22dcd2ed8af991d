"""Runs without a training: the directories that one would leave, with untrained weights and made-up logs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog

from mokd_det.checkpoint import write_file
from mokd_det.config import load_config
from mokd_det.data import register_coco_format
from mokd_det.data.digits import annotation_file, generate, image_folder
from mokd_det.engine.inference_model import student_section

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class TinyRun:
    """A run's directory, its weights and the name of its data set."""

    directory: Path
    weights: Path
    dataset: str


def tiny_dataset(root: Path, images: int = 6) -> str:
    """A few digits under a name of their own."""
    generate("digits", root, counts={"train": 1, "val": images, "test": 1})
    name = f"tiny_digits_{abs(hash(str(root)))}"
    if name not in DatasetCatalog:
        folder = root / "digits"
        register_coco_format(name, annotation_file(folder, "val"), image_folder(folder, "val"))
    return name


def tiny_run(
    root: Path, name: str = "run", *, config: str = "quickstart/mokd.py", dataset: str | None = None
) -> TinyRun:
    """A finished run of a quick-start configuration."""
    directory = root / name
    directory.mkdir(parents=True)
    if config.startswith("quickstart/"):
        dataset = dataset or tiny_dataset(root / "datasets")
    cfg = load_config(ROOT / "configs" / config, ["train.max_iter=100"], training=False)
    if dataset is not None:
        cfg.dataloader.test.dataset = dataset
    cfg.train.output_dir = str(directory)
    LazyConfig.save(cfg, str(directory / "config.yaml"))
    torch.manual_seed(0)
    weights = directory / "student_final.pth"
    write_file(instantiate(student_section(cfg)).state_dict(), weights)
    task = "bbox/AP" if dataset is not None else "classification/top1"
    write_metrics(directory, task)
    return TinyRun(directory, weights, dataset or "")


def write_metrics(
    directory: Path, metric: str, classes: tuple[str, ...] = ("0", "<script>alert(1)</script>")
) -> None:
    """What a training with two objectives logs."""
    directory.mkdir(parents=True, exist_ok=True)
    records: list[dict] = [
        {
            "iteration": i,
            "total_loss": 3.0 / (i + 1),
            "loss_ce": 2.0 / (i + 1),
            "loss_ce_0": 1.0 / (i + 1),
            "loss_distill_neck": 0.5 / (i + 1),
            "pi/distill": 0.3,
            "pi/task": 0.7,
            "cosine/distill_task/all": math.cos(i),
            "raw_norm_ratio/distill_task/all": 1.5,
            "log_norm_ratio/distill_task/all": 0.5,
            "raw_inner_product/distill_task/all": math.cos(i) / 50,
            "distill/neck/target_effective_rank": 20.0,
            "time": 0.2,
            "data_time": 0.02,
            "teacher_time": 0.05,
            "student_time": 0.08,
            "balance_time": 0.04,
        }
        for i in range(19, 100, 20)
    ]
    for i, value in ((49, 12.5), (100, 34.5)):
        records.append(
            {
                "iteration": i,
                metric: value,
                **{f"{metric}-{name}": value + n for n, name in enumerate(classes)},
            }
        )
    if metric.endswith("/AP"):
        records[-1] |= {"bbox/AP50": 50.0, "bbox/APl": float("nan")}
    (directory / "metrics.json").write_text("".join(json.dumps(record) + "\n" for record in records))
