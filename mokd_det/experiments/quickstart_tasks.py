"""What the quick start trains: models that detect digits, or models that classify them."""

from __future__ import annotations

import argparse
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from mokd_det.classification import DigitImages, build_classification_test_loader
from mokd_det.config import as_override
from mokd_det.data import CocoFormatSource, DetrDatasetMapper, datasets_root, load_coco_format
from mokd_det.data.digits import annotation_file, class_names, generate, image_folder
from mokd_det.errors import ConfigError
from mokd_det.experiments.run_queue import clock
from mokd_det.experiments.training_runs import file_digest
from mokd_det.model_zoo import WEIGHTS
from mokd_det.visualization import BoxSet, predictions_figure, save_png

__all__ = ["TASKS", "Task"]

PICTURES = 6
MIN_SCORE = 0.5
# Draws of the scenes from this number on: no replicate of docs/results.md has them.
FIRST_DRAW = 1000


class Task(ABC):
    """One kind of quick start.

    Attributes:
        configs: folder below ``configs`` with a file per model.
        models: file → label: the teacher, the student alone, then the distilled students.
        short: distilled student → its name in the head of a table.
        title: of the curves.
        results: task of the evaluation results.
        metrics: those reported, with the number of test images.
        seed_metrics: of these, those shown seed by seed; the first one decides.
        unit: what the metrics are.
        expected_seconds: model → seconds per iteration on one core of a small machine; only for the first
            estimate of the time left, until the runs' own speed is known.
        test_overrides: of a configuration, to evaluate on the test images.
        images: training images by default.
        records: folder of the committed replicates of MoKD, and its name there; None: there are none.
        shipped_teacher: weights of a teacher that the project brings; None: it is trained.
    """

    configs: str
    models: Mapping[str, str]
    short: Mapping[str, str]
    title: str
    results: str
    metrics: tuple[str, ...]
    seed_metrics: tuple[str, ...]
    unit: str
    expected_seconds: Mapping[str, float]
    test_overrides: tuple[str, ...]
    images: int
    records: tuple[str, str] | None = None
    shipped_teacher: Path | None = None

    @abstractmethod
    def make_data(self, options: argparse.Namespace) -> Path | None:
        """Make the data unless it is there; the folder, where there is one."""

    @abstractmethod
    def overrides(self, options: argparse.Namespace, model: str, seed: int) -> tuple[str, ...]:
        """Of a training's configuration: its images and first weights."""

    @abstractmethod
    def identity(self, data: Path | None) -> dict[str, str]:
        """Digest of the data."""

    @abstractmethod
    def test_inputs(self, data: Path | None, config: DictConfig, count: int) -> tuple[list[Any], int]:
        """What a model gets for each of the first test images, and how many there are in all."""

    @abstractmethod
    def draw(
        self, data: Path | None, inputs: Sequence[Any], models: Mapping[str, torch.nn.Module], output: Path
    ) -> list[str]:
        """Draw what the models say of the inputs, if that is worth a picture; names of the files."""


class Detection(Task):
    """The test bed of docs/results.md: few labelled scenes of digits, a pretrained student; small ViDTs."""

    configs = "few_scenes"
    kind = "digits_few"
    counts = {"train": 8000, "val": 300, "test": 1000}
    models = {"teacher": "teacher", "student": "student alone", "mokd": "student, MoKD"}
    short = {"mokd": "MoKD"}
    title = "Training on a few scenes of digits"
    results = "bbox"
    metrics = ("AP", "AP50", "AP75")
    seed_metrics = ("AP", "AP50")
    unit = "COCO box metrics in percent"
    expected_seconds = {"teacher": 0.15, "student": 0.13, "mokd": 0.19}
    test_overrides = ("dataloader.test.dataset=digits_few_test",)
    images = 160
    records = "few_scenes", "similarity_amortized"
    shipped_teacher = WEIGHTS / "few_scenes_teacher.safetensors"
    first_weights = WEIGHTS / "few_scenes_pretrained.safetensors"

    def make_data(self, options: argparse.Namespace) -> Path:
        """Generate the scenes among the other data sets, as many as the replicates had to draw from."""
        if options.images > self.counts["train"]:
            raise ConfigError(
                f"--images {options.images}: must be at most {self.counts['train']}, the scenes there are"
            )
        root = datasets_root()
        began = time.monotonic()
        try:
            made = generate(self.kind, root, counts=self.counts)
        except OSError as error:
            raise ConfigError(f"the digits cannot be written below {root}: {error}") from error
        how = f"generated in {clock(time.monotonic() - began)}" if made else "already there"
        print(f"data: {root / self.kind}, {sum(self.counts.values())} images, {how}", flush=True)
        return root / self.kind

    def overrides(self, options: argparse.Namespace, model: str, seed: int) -> tuple[str, ...]:
        """The students' draw of the scenes and their pretrained weights; the teacher learns from all scenes."""
        if model == "teacher":
            return ()
        return (
            f"dataloader.train.draw={{count: {options.images}, seed: {FIRST_DRAW + seed}}}",
            as_override("train.init_checkpoint", str(self.first_weights)),
            # the pictures show how the gradients relate
            "train.conflict_period=20",
            "train.diagnostics_period=50",
        )

    def identity(self, data: Path | None) -> dict[str, str]:
        assert data is not None
        return {
            "data": file_digest(data / "manifest.json"),
            "first weights": file_digest(self.first_weights),
        }

    def test_inputs(self, data: Path | None, config: DictConfig, count: int) -> tuple[list[Any], int]:
        records = self._test_records(data)
        mapper = DetrDatasetMapper(is_train=False, augmentation=[])
        return [[mapper(record)] for record in records[:count]], len(records)

    @torch.no_grad()
    def draw(
        self, data: Path | None, inputs: Sequence[Any], models: Mapping[str, torch.nn.Module], output: Path
    ) -> list[str]:
        """The first test images, as they come, with the truth and what each model finds."""
        inputs, records = inputs[:PICTURES], self._test_records(data)[:PICTURES]
        columns = []
        for name, model in models.items():
            found = [model(sample)[0]["instances"] for sample in inputs]
            columns.append((self.models[name], [BoxSet.from_instances(instances) for instances in found]))
        figure = predictions_figure(
            [sample[0]["image"].permute(1, 2, 0).numpy() for sample in inputs],
            [BoxSet.from_annotations(record["annotations"]) for record in records],
            columns,
            class_names(self.kind),
            min_score=MIN_SCORE,
            title=f"The first {len(inputs)} test images",
            row_names=[Path(record["file_name"]).name for record in records],
        )
        save_png(figure, output / "predictions.png")
        return ["predictions.png"]

    def _test_records(self, data: Path | None) -> list[dict[str, Any]]:
        assert data is not None
        files = str(annotation_file(data, "test")), str(image_folder(data, "test"))
        return load_coco_format(CocoFormatSource(None, *files))


class Classification(Task):
    """Single digits; a CNN that teaches a small transformer."""

    configs = "quickstart_classification"
    models = {
        "teacher": "teacher",
        "student": "student alone",
        "kd": "student, KD",
        "vkd": "student, VkD",
        "mokd": "student, MoKD",
    }
    short = {"kd": "KD", "vkd": "VkD", "mokd": "MoKD"}
    title = "Training on scikit-learn's digits"
    results = "classification"
    metrics = ("top1", "top5", "ece")
    seed_metrics = ("top1",)
    unit = "Accuracies and expected calibration error (ece; lower is better) in percent"
    expected_seconds = {"teacher": 0.08, "student": 0.03, "kd": 0.05, "vkd": 0.05, "mokd": 0.06}
    test_overrides = ("dataloader.test.dataset.split=test",)
    images = 300

    def make_data(self, options: argparse.Namespace) -> None:
        """Nothing to make: scikit-learn brings the images."""
        if options.images % 10:
            raise ConfigError(
                f"--images {options.images}: must be a multiple of 10, the same number of each digit"
            )
        print(f"data: scikit-learn's digits, {options.images} to train on, already there", flush=True)

    def overrides(self, options: argparse.Namespace, model: str, seed: int) -> tuple[str, ...]:
        return (f"dataloader.train.dataset.per_class={options.images // 10}",)

    def identity(self, data: Path | None) -> dict[str, str]:
        return {"data": " ".join(DigitImages(split).fingerprint() for split in ("train", "val", "test"))}

    def test_inputs(self, data: Path | None, config: DictConfig, count: int) -> tuple[list[Any], int]:
        test = config.dataloader.test
        dataset = DigitImages("test", test.dataset.size)
        loader = build_classification_test_loader(dataset, instantiate(test.transform), batch_size=1)
        return list(islice(loader, count)), len(dataset)

    def draw(
        self, data: Path | None, inputs: Sequence[Any], models: Mapping[str, torch.nn.Module], output: Path
    ) -> list[str]:
        """Nothing: a digit and its name say less than the table."""
        return []


TASKS: dict[str, Task] = {"detection": Detection(), "classification": Classification()}
