"""The quick start's and Fashion-MNIST's configs: built by the real code, one step each, checked against the data."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from mokd_det.config import TrainSettings, load_config
from mokd_det.engine.build import build_trainer
from mokd_det.errors import ConfigError
from mokd_det.evaluation.main_metric import main_metric
from tests.classification.test_datasets import write_fashion, write_images

ROOT = Path(__file__).parents[2] / "configs"
FOLDERS = ("quickstart_classification", "FashionMNIST")
CONFIGS = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).glob("*.py") if path.name != "common.py"
)


def trainer_of(path: Path, *overrides: str):
    cfg = load_config(str(path), ["dataloader.train.num_workers=0", *overrides])
    if "teacher" in cfg.model:
        cfg.model.teacher_checkpoint = ""
    settings = TrainSettings.from_config(cfg.train)
    torch.manual_seed(0)
    return build_trainer(cfg, settings)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_one_step(path, tmp_path, monkeypatch):
    write_fashion(tmp_path / "fashion-mnist")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    trainer = trainer_of(path, "dataloader.train.total_batch_size=4", "train.device=cpu")
    with EventStorage() as storage:
        trainer.storage, trainer.iter, trainer.max_iter = storage, 0, 1
        trainer.run_step()
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert all(math.isfinite(value) for value in latest.values())
    distilled = path.stem not in ("teacher", "student")
    assert any(name.startswith("loss_distill_") for name in latest) is distilled
    if path.stem == "mokd":
        assert {"loss_distill_kd_pooled", "loss_distill_kl_kl", "loss_cls"} <= set(latest)
        assert latest["pi/distill"] + latest["pi/task"] == pytest.approx(1.0)


def test_the_runs_differ_in_model_and_balance_only():
    folder = ROOT / "quickstart_classification"
    student, *others = (load_config(folder / f"{name}.py") for name in ("student", "kd", "vkd", "mokd"))
    for other in others:
        assert other.model.student == student.model
        for section in ("dataloader", "optimizer", "lr_multiplier"):
            assert other[section] == student[section]
        assert other.train.max_iter == student.train.max_iter
    assert main_metric(student) == "classification/top1"
    assert main_metric(load_config(ROOT / "quickstart" / "student.py")) == "bbox/AP"


QUICK = ROOT / "quickstart_classification"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "student",
            ["model.num_classes=7"],
            r"model \(ImageClassifier\) has num_classes=7, but the training data digits \(train\) \(30 per class\) has "
            "10 classes; num_classes must be 10",
        ),
        (
            "kd",
            ["model.student.num_classes=7", "model.teacher.num_classes=7"],
            "^model.student .* num_classes=7",
        ),
        (
            "student",
            ["dataloader.train.total_batch_size=5", "dataloader.train.mixup={cutmix_alpha: 1.0}"],
            "even",
        ),
    ],
)
def test_contradictions_are_found_before_training(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        trainer_of(QUICK / f"{name}.py", *overrides)


def test_classes_of_training_and_evaluation_must_agree(tmp_path, monkeypatch):
    for split, names in (("train", "abc"), ("val", "abd"), ("shuffled", "abc")):
        write_images(tmp_path / split, dict.fromkeys(names, 2), size=16)

    def overrides(test: str):
        folder = "mokd_det.classification.ImageFolder"
        return [
            "model.num_classes=3",
            f"dataloader.train.dataset={{_target_: {folder}, root: '{tmp_path}/train'}}",
            f"dataloader.test.dataset={{_target_: {folder}, {test}}}",
            "dataloader.train.total_batch_size=2",
        ]

    with pytest.raises(ConfigError, match="same classes in the same order, but only one of them has 'c'"):
        trainer_of(QUICK / "student.py", *overrides(f"root: '{tmp_path}/val'"))
    with pytest.raises(ConfigError, match="but their orders differ"):
        trainer_of(QUICK / "student.py", *overrides(f"root: '{tmp_path}/train', class_names: [b, a, c]"))
    trainer_of(QUICK / "student.py", *overrides(f"root: '{tmp_path}/shuffled'"))
