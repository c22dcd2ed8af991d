"""A user's own training and validation files, and what follows from them for model and schedule."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mokd_det.data.coco_format import load_coco_format, read_classes, register_coco_format
from mokd_det.data.coco_source import BadBoxPolicy, CocoFormatSource
from mokd_det.data.image_file import check_size
from mokd_det.data.unlabeled import checked_unlabeled, require_count, require_folder
from mokd_det.errors import ConfigError, DatasetError

__all__ = ["OwnData", "OwnDataFacts"]

_REFERENCE_BATCH = 16
_DEFAULT_EPOCHS = 50
_MIN_ITERATIONS = 6_000
_MAX_ITERATIONS = 370_000
_EVALUATIONS = 50


@dataclass(frozen=True)
class OwnDataFacts:
    """What the files say; a configuration refers to it as ``${from_data.<name>}``.

    Attributes:
        class_names: by ascending category id.
        train_dataset, val_dataset: registered names; None: not given.
        train_images: images of the training data.
        epochs: how often training shows each of them.
        max_iter: optimiser steps.
        eval_period: optimiser steps between evaluations and between checkpoints.
        lr: learning rate for the batch size.
        unlabeled_images: folder of images without annotations; None: not given.
        unlabeled_batch_size: of them per batch.
    """

    num_classes: int
    class_names: list[str]
    train_dataset: str | None
    val_dataset: str | None
    train_images: int
    epochs: int
    max_iter: int
    eval_period: int
    lr: float
    unlabeled_images: str | None = None
    unlabeled_batch_size: int = 0


@dataclass
class OwnData:
    """The section ``data`` of a configuration.

    The schedule: ``epochs`` if it is given; otherwise 50, but as many as make at least 6,000 and at most 370,000
    iterations (COCO's 50 epochs). The learning rate grows with the square root of the images per step, as suits Adam:
    ``lr`` is meant for 16 of them. An evaluation and a checkpoint come after every epoch, but 50 times at most.

    Attributes:
        train: ``json``, an annotation file in COCO format, and ``images``, the folder that its file names are
            relative to.
        val: the same for evaluation; None: train without evaluation.
        total_batch_size: images per batch over all processes.
        accumulate: batches per optimiser step.
        epochs: passes over the training data; None: from its size.
        lr: learning rate for 16 images per step.
        on_bad_box: "error", or "drop" to leave out boxes without area inside their image.
        unlabeled: ``images``, a folder of images without annotations that a distillation also learns from, and
            ``total_batch_size`` of them per batch (None: as many as labelled ones). Images of ``val`` and the labelled
            ones that lie in the folder are left out.
    """

    train: Mapping[str, str | None] = field(default_factory=dict)
    val: Mapping[str, str | None] | None = field(default_factory=dict)
    total_batch_size: int = _REFERENCE_BATCH
    accumulate: int = 1
    epochs: int | None = None
    lr: float = 1e-4
    on_bad_box: BadBoxPolicy = "error"
    unlabeled: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, section in (("train", self.train), ("val", {} if self.val is None else self.val)):
            if not isinstance(section, Mapping) or not set(section) <= {"json", "images"}:
                raise ConfigError(f"data.{name} is {section!r}; it must have the keys json and images")
            for key, value in section.items():
                if not isinstance(value, (str, type(None))):
                    raise ConfigError(f"data.{name}.{key} is {value!r}; it must be a path")
        require_count("data.total_batch_size", self.total_batch_size)
        require_count("data.accumulate", self.accumulate)
        if self.epochs is not None:
            require_count("data.epochs", self.epochs)
        if not isinstance(self.lr, (int, float)) or not 0 <= self.lr < math.inf:
            raise ConfigError(f"data.lr is {self.lr!r}; it must be a number of 0 or more")
        if self.on_bad_box not in ("error", "drop"):
            raise ConfigError(f"data.on_bad_box is {self.on_bad_box!r}; it must be 'error' or 'drop'")
        self._unlabeled, self._unlabeled_batch = checked_unlabeled(self.unlabeled)

    def read(self, *, training: bool = True, class_names: Sequence[str] | None = None) -> OwnDataFacts:
        """Check the paths, register both data sets and say what follows from them.

        The validation data is checked completely here, headers of its images included, since a mistake in it would
        show only at the first evaluation; the training data when its loader is built.

        Args:
            training: False where only an evaluation follows: the validation data is enough then.
            class_names: what a saved configuration knows of the classes. Away from its data a trained model can still
                be exported, or look at other images.

        Raises:
            ConfigError: paths that are not given, that do not exist, or a batch larger than the data set.
            DatasetError: files that cannot be used, or classes that differ between the two.
        """
        away = not training and class_names is not None and not self._is_there("val")
        if not away:
            self._check_paths(training)
        asked = [name for name in ("train", "val") if (self._is_given if training else self._is_there)(name)]
        read = {name: read_classes(self._path(name, "json")) for name in asked}
        if len(read) == 2:
            self._check_same_classes(read["train"][1], read["val"][1])
        classes = list(class_names) if away and class_names else next(iter(read.values()))[1]
        images = read["train"][2] if "train" in read else 0
        if training and images < self.total_batch_size:
            raise ConfigError(
                f"data.total_batch_size is {self.total_batch_size}, but data.train.json lists {images} images; "
                f"give data.total_batch_size={images} or less"
            )
        names = {name: self._register(name) for name in ([*read, "val"] if away else read)}
        if training and "val" in read:
            for record in load_coco_format(self._source("val")):
                check_size(record)
        batches = max(images // self.total_batch_size, 1)
        epochs = self.epochs if self.epochs is not None else self._default_epochs(batches)
        max_iter = max(round(epochs * batches / self.accumulate), 1)
        per_epoch = math.ceil(batches / self.accumulate)
        return OwnDataFacts(
            num_classes=len(classes),
            class_names=classes,
            train_dataset=names.get("train"),
            val_dataset=names.get("val"),
            train_images=images,
            epochs=epochs,
            max_iter=max_iter,
            eval_period=min(max(per_epoch, math.ceil(max_iter / _EVALUATIONS)), max_iter),
            lr=self.lr * math.sqrt(self.total_batch_size * self.accumulate / _REFERENCE_BATCH),
            unlabeled_images=self._unlabeled or None,
            unlabeled_batch_size=self._unlabeled_batch or self.total_batch_size,
        )

    def _default_epochs(self, batches_per_epoch: int) -> int:
        per_epoch = batches_per_epoch / self.accumulate
        wanted = max(_DEFAULT_EPOCHS, math.ceil(_MIN_ITERATIONS / per_epoch))
        return max(min(wanted, int(_MAX_ITERATIONS / per_epoch)), 1)

    def _path(self, name: str, key: str) -> str:
        section = self.train if name == "train" else self.val
        return os.path.expanduser((section or {}).get(key) or "")

    def _is_given(self, name: str) -> bool:
        return bool(self._path(name, "json") or self._path(name, "images"))

    def _is_there(self, name: str) -> bool:
        json_file, images = self._path(name, "json"), self._path(name, "images")
        return bool(json_file and images) and (
            ("://" in json_file or os.path.isfile(json_file)) and ("://" in images or os.path.isdir(images))
        )

    def _check_paths(self, training: bool) -> None:
        needed = ["train"] if training else []
        if self.val is not None or not training:
            needed.append("val")
        absent = [f"data.{n}.{k}" for n in needed for k in ("json", "images") if not self._path(n, k)]
        if absent:
            hint = ""
            if training and {"data.val.json", "data.val.images"} <= set(absent):
                hint = "; data.val=null trains without evaluation"
            raise ConfigError(
                f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not given: json is an annotation "
                f"file in COCO format, images the folder of its images{hint}"
            )
        for name in needed:
            json_file, images = self._path(name, "json"), self._path(name, "images")
            if "://" not in json_file and not os.path.isfile(json_file):
                there = ", but a folder: give the JSON file itself" if os.path.isdir(json_file) else ""
                raise ConfigError(f"data.{name}.json: there is no file '{json_file}'{there}")
            if "://" not in images:
                require_folder(f"data.{name}.images", images)
        if training and self._unlabeled:
            require_folder("data.unlabeled.images", self._unlabeled)

    def _source(self, name: str) -> CocoFormatSource:
        json_file, images = self._path(name, "json"), self._path(name, "images")
        # The name says it all, so one name never stands for two data sets.
        dropped = ", bad boxes dropped" if self.on_bad_box == "drop" else ""
        return CocoFormatSource(f"{json_file} in {images}{dropped}", json_file, images, self.on_bad_box)

    def _register(self, name: str) -> str:
        source = self._source(name)
        assert source.name is not None
        register_coco_format(
            source.name, source.json_file, self._path(name, "images"), on_bad_box=source.on_bad_box
        )
        return source.name

    def _check_same_classes(self, train: Sequence[str], val: Sequence[str]) -> None:
        if train == val:
            return
        differences: list[str] = [
            f"only in {name}: {', '.join(map(repr, only))}"
            for name, classes, others in (("train", train, val), ("val", val, train))
            if (only := [c for c in classes if c not in others])
        ]
        if not differences:
            i = next(i for i, pair in enumerate(zip(train, val, strict=True)) if pair[0] != pair[1])
            differences = [f"by ascending id, number {i + 1} is {train[i]!r} in train and {val[i]!r} in val"]
        raise DatasetError(
            f"the categories of data.train.json ({self._path('train', 'json')}) and data.val.json "
            f"({self._path('val', 'json')}) differ; {'; '.join(differences)}"
        )
