"""Filling a configuration for a user's own data with what the files say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from detectron2.config import LazyCall, instantiate
from omegaconf import DictConfig

from mokd_det.checkpoint import identify, load_file
from mokd_det.checkpoint.reading import require_file
from mokd_det.data.own_data import OwnData, OwnDataFacts
from mokd_det.data.unlabeled import UnlabeledImages
from mokd_det.errors import CheckpointError, ConfigError

__all__ = ["fill_from_data", "own_data_summary"]


def fill_from_data(cfg: DictConfig, overrides: Sequence[str] = (), *, training: bool = True) -> None:
    """Read the files that ``data`` names and put what they say under ``from_data``, in place.

    Does nothing for a configuration without a ``data`` section of :class:`mokd_det.data.OwnData`. Besides
    :class:`mokd_det.data.OwnDataFacts`, ``from_data`` gets ``teacher_classes``: a teacher keeps the class
    heads that its file has.

    Args:
        cfg: with the user's ``overrides`` applied.
        training: whether a training follows, and not only an evaluation.

    Raises:
        ConfigError: the section contradicts itself, or paths are not given or do not exist.
        DatasetError: a file that cannot be used, or classes that differ between training and validation.
        CheckpointError: the teacher's file cannot be read.
    """
    if not isinstance(cfg.get("data"), DictConfig) or "_target_" not in cfg.data:
        return
    for text in overrides:
        if text.split("=")[0].split(".")[0] == "from_data":
            raise ConfigError(f"override '{text}': from_data is filled in from the files that data names")
    data = instantiate(cfg.data)
    if not isinstance(data, OwnData):
        raise ConfigError(f"data must be a mokd_det.data.OwnData, not {type(data).__name__}")
    facts = data.read(training=training, class_names=cfg.from_data.get("class_names"))
    said = {**dataclasses.asdict(facts), "teacher_classes": facts.num_classes}
    cfg.from_data = {key: _escaped(value) for key, value in said.items()}
    distills = "student" in cfg.model
    if training and distills and cfg.model.get("teacher") is not None:
        cfg.from_data.teacher_classes = _teacher_classes(cfg, facts.num_classes)
    student_key = "model.student" if distills else "model"
    found = (cfg.model.student if distills else cfg.model).get("num_classes", facts.num_classes)
    if found != facts.num_classes:
        raise ConfigError(
            f"{student_key}.num_classes is {found}, but the data has {facts.num_classes} classes: "
            f"{', '.join(facts.class_names)}"
        )
    if not training and not any(text.startswith("train.init_on_class_mismatch=") for text in overrides):
        # Class heads that start afresh are right for a training; evaluated, they would be noise.
        cfg.train.init_on_class_mismatch = "error"
    if training and facts.unlabeled_images is not None:
        _add_unlabeled_images(cfg, facts)
    if facts.val_dataset is None:
        cfg.dataloader.test = cfg.dataloader.evaluator = cfg.train.best = None


def own_data_summary(cfg: DictConfig) -> list[str]:
    """Lines for the log: the data and what followed from it, and a teacher of other classes; none without own data."""
    facts = cfg.get("from_data")
    if facts is None or facts.get("class_names") is None:
        return []
    names = ", ".join(facts.class_names)
    text = f"Own data: {facts.num_classes} classes ({names})"
    if facts.train_dataset is not None:
        epochs = f", {facts.epochs} epochs" if cfg.train.max_iter == facts.max_iter else ""
        text += f"; {facts.train_images} images{epochs}, {cfg.train.max_iter} iterations"
    if facts.get("unlabeled_images"):
        text += f"; unlabelled images of {facts.unlabeled_images}, {facts.unlabeled_batch_size} per batch"
    lines = [text]
    if facts.teacher_classes != facts.num_classes and cfg.model.get("token_matching", "index") == "index":
        lines.append(
            f"The teacher's file has {facts.teacher_classes} classes, the data {facts.num_classes}: distilling on "
            "tokens only, the teacher's class predictions are not used"
        )
    return lines


def _escaped(value: Any) -> Any:
    """Text of the user's, and lists of it, so that a configuration takes no part of it for a reference."""
    if isinstance(value, list):
        return [_escaped(entry) for entry in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _add_unlabeled_images(cfg: DictConfig, facts: OwnDataFacts) -> None:
    """Batches with unlabelled images, a Distiller that compares them, and an objective of their own."""
    if cfg.model.get("teacher") is None:
        raise ConfigError(
            "data.unlabeled.images is given, but the model has no teacher: from images without annotations only a "
            "teacher's outputs can be learned"
        )
    judged = [] if facts.val_dataset is None else ["${from_data.val_dataset}"]
    images = LazyCall(UnlabeledImages)(
        folder="${from_data.unlabeled_images}", total_batch_size=facts.unlabeled_batch_size, leave_out=judged
    )
    cfg.dataloader.train.unlabeled = images
    cfg.model._target_ = "mokd_det.distillation.UnlabeledDistiller"
    cfg.objectives.setdefault("unlabeled", ["loss_unlabeled_*"])


def _teacher_classes(cfg: DictConfig, default: int) -> int:
    path = cfg.model.get("teacher_checkpoint")
    # One that is not there yet: a comparison reads the configurations before it trains the teacher. A training refuses
    # a missing file before it begins.
    try:
        require_file(path or "")
    except CheckpointError:
        return default
    weights = load_file(path, what="model.teacher_checkpoint")
    # A file that is no detector's is the Distiller's error, which names the teacher it does not fit.
    return identify(weights).num_classes or default
