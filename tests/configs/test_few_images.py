"""The beds with few images: every cell takes a step, and what the methods file takes for granted of them holds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from PIL import Image

from mokd_det.config import TrainSettings, load_config
from mokd_det.distillation import CRD
from mokd_det.engine.build import build_trainer
from mokd_det.experiments.method_grid import read_methods
from tests.classification.test_datasets import write_fashion

FOLDER = Path(__file__).parents[2] / "configs" / "few_images"
CNN = ["none", "kd@4", "fitnet", "review_kd", "vkd", "crd", "similarity", "regression", "similarity_total_2"]
VIT = ["fitnet_vit", "review_kd", "regression_rate_0.1", "similarity_maps_vit", "vkd_maps_vit_amortized"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 1)):
        for name in range(10):
            images = folder / "cifar10_jpeg" / split / str(name)
            images.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(
                    images / f"{number}.jpg"
                )
    write_fashion(folder / "fashion-mnist")
    return folder


@pytest.mark.parametrize(("bed", "name"), [("cifar10", m) for m in CNN] + [("fashion", m) for m in VIT])
def test_every_cell_takes_a_step(bed, name, data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    path = FOLDER / f"{bed}.py"
    (method,) = read_methods(FOLDER / "methods.py", [name])
    cfg = load_config(
        path, [*method.overrides(load_config(path)), "model.teacher_checkpoint=''", "train.device=cpu"]
    )
    train = cfg.dataloader.train
    if method.node["_target_"] is CRD:
        assert method.node["num_samples"] == train.dataset.per_class * 10
    torch.manual_seed(0)
    trainer = build_trainer(cfg, TrainSettings.from_config(cfg.train))
    with EventStorage() as storage:
        trainer.storage, trainer.iter, trainer.max_iter = storage, 0, 1
        trainer.run_step()
        latest = {key: value for key, (value, _) in storage.latest().items()}
    assert all(math.isfinite(value) for value in latest.values())
    assert any(key.startswith("loss_distill_") for key in latest) is (name != "none")


@pytest.mark.parametrize("bed", ["cifar10", "fashion"])
def test_the_teacher_has_seen_the_students_images(bed, data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    student, teacher = (load_config(FOLDER / f"{bed}{end}.py") for end in ("", "_teacher"))
    assert student.dataloader.train.transform == teacher.dataloader.train.transform
    assert student.dataloader.train.dataset.dataset == teacher.dataloader.train.dataset.dataset
    assert student.dataloader.train.dataset.per_class < teacher.dataloader.train.dataset.per_class
    assert student.model.teacher == teacher.model
