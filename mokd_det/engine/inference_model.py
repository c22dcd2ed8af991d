"""A trained model for use: from a configuration and a checkpoint, without teacher, optimiser or output directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mokd_det.checkpoint import load_into
from mokd_det.config import TrainSettings, load_config
from mokd_det.data.class_table import ClassTable, dataset_classes, file_classes
from mokd_det.engine.setup import pick_device
from mokd_det.errors import ConfigError

__all__ = ["InferenceModel", "load_inference_model", "student_section"]


@dataclass(frozen=True)
class InferenceModel:
    """A trained model and how its configuration feeds it.

    Attributes:
        model: in eval mode, on its device, without gradients.
        cfg: the configuration.
        config_file: where that is from, for messages.
    """

    model: nn.Module
    cfg: DictConfig
    config_file: str

    def build_mapper(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """What makes the model's input of a record (``file_name``, ``image_id``, ``height``, ``width``), as in the
        configuration's evaluation.

        Raises:
            ConfigError: the configuration has none, being no detector's, say.
        """
        return self._build_test("mapper")

    def build_transform(self) -> Callable[[Any], Any]:
        """What makes a classifier's input of a PIL image, as in the configuration's evaluation.

        Raises:
            ConfigError: the configuration has none.
        """
        return self._build_test("transform")

    @property
    def dataset(self) -> str | None:
        """Registered name of the data set that the configuration evaluates on; None: it names none."""
        name = self._test().get("dataset")
        return name if isinstance(name, str) else None

    def class_table(self, json_file: str | None) -> ClassTable:
        """Names and ids of the classes: of a file in COCO's format, None: of the data set.

        Raises:
            ConfigError: there is neither.
            DatasetError: the file or the data set cannot be used.
        """
        if json_file is not None:
            return file_classes(json_file)
        if self.dataset is None:
            raise ConfigError(
                f"config file '{self.config_file}' names no data set that would tell the classes; give "
                f"--annotations FILE.json, a COCO-format file"
            )
        return dataset_classes(self.dataset)

    @property
    def predicts_dataset_ids(self) -> bool:
        """Whether a predicted class is a category id of the data set and no contiguous index."""
        evaluator = self.cfg.dataloader.get("evaluator")
        return bool(evaluator is not None and evaluator.get("predicts_dataset_ids", False))

    def _test(self) -> DictConfig:
        test = self.cfg.dataloader.get("test")
        return test if isinstance(test, DictConfig) else OmegaConf.create()

    def _build_test(self, part: str) -> Any:
        if self._test().get(part) is None:
            raise ConfigError(
                f"config file '{self.config_file}' has no dataloader.test.{part}, which says how the model "
                f"({type(self.model).__name__}) wants its images"
            )
        return instantiate(self._test()[part])


def student_section(cfg: DictConfig) -> DictConfig:
    """The section of the model that a checkpoint's "model" belongs to: of a distillation, its student."""
    return cfg.model.student if "student" in cfg.model else cfg.model


def load_inference_model(
    config_file: str | os.PathLike[str], checkpoint: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> InferenceModel:
    """Build the model of a configuration (of a distillation the student alone) and load its weights.

    Args:
        config_file: LazyConfig file, or the ``config.yaml`` of a run.
        checkpoint: weights of the whole model, see :func:`mokd_det.checkpoint.load_into`.
        overrides: of the configuration, ``key=value``; ``train.device=cpu`` chooses the device.

    Raises:
        ConfigError: a mistake in the configuration.
        DatasetError: the configuration's own data cannot be used.
        CheckpointError: the weights are missing or do not fit.
    """
    cfg = load_config(config_file, overrides, training=False)
    settings = TrainSettings.from_config(cfg.train)
    model = instantiate(student_section(cfg)).to(pick_device(settings.device))
    load_into(
        model,
        checkpoint,
        keep_rows=settings.init_keep_rows,
        allow_missing=settings.init_allow_missing,
        allow_unexpected=settings.init_allow_unexpected,
        # A head or a detector at its initial values is right for a training; looked at, it is noise.
        on_class_mismatch="error",
        allow_classifier=False,
    )
    return InferenceModel(model.eval().requires_grad_(False), cfg, os.fspath(config_file))
