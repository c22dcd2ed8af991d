"""The grid of a comparison: methods from a methods file, as overrides of any config of a distillation."""

from __future__ import annotations

import argparse
import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from mokd_det.config import as_override, load_config
from mokd_det.config.near_keys import did_you_mean
from mokd_det.errors import ConfigError
from mokd_det.experiments.training_runs import RECORD, TrainingRun

__all__ = ["GridRun", "Method", "Teacher", "plan", "plan_teacher", "read_methods"]

DISTILL = "distill"
"""The objective of the distillation losses."""


@dataclass(frozen=True)
class Method:
    """What a method changes in a configuration.

    Attributes:
        name: as on the command line.
        label: for people.
        node: the config of the ``Method`` class.
        balancer: the config of the balancer.
        needs_teacher: whether a teacher takes part.
        settings: other values of the config that are this method's own, by dotted key: objectives with inner
            weights, a learning rate that was found for it.
    """

    name: str
    label: str
    node: dict[str, Any]
    balancer: dict[str, Any]
    needs_teacher: bool
    settings: Mapping[str, Any] = field(default_factory=dict)

    def overrides(self, config: DictConfig) -> list[str]:
        """``key.path=value`` texts for a configuration."""
        objectives = {**config.objectives, **self.settings.get("objectives", {})}
        names = [str(name) for name, patterns in objectives.items() if patterns is not None]
        texts = [as_override("model.method", self.node)]
        if not self.needs_teacher:
            names = [name for name in names if name != DISTILL]
            # The unused teacher stays: building it draws the same random numbers as in the other methods' runs.
            texts += [f"objectives.{DISTILL}=null", "model.teacher_checkpoint=''"]
        balancer = dict(self.balancer)
        weights = balancer.get("weights")
        if isinstance(weights, Mapping):
            balancer["weights"] = {name: weights.get(name, weights.get("task")) for name in names}
        texts.append(as_override("balancer", balancer))
        return [*texts, *(as_override(key, value) for key, value in self.settings.items())]


@dataclass(frozen=True)
class Teacher:
    """The teacher of all runs.

    Attributes:
        weights: its file; None: the configs name it.
        run: its training, which also says how to evaluate it; None: there is no config of it.
        trained_here: whether that training is part of the comparison.
    """

    weights: Path | None
    run: TrainingRun | None
    trained_here: bool


@dataclass(frozen=True)
class GridRun(TrainingRun):
    """One cell of the grid."""

    student: str
    method: Method
    seed: int
    teacher: Path | None


def read_methods(path: Path, names: Sequence[str]) -> list[Method]:
    """The named methods of a methods file.

    Raises:
        ConfigError: the file cannot be used, it has no such method, or a weight is given for a balancer that
            takes none.
    """
    if not path.is_file():
        raise ConfigError(f"methods file '{path}' does not exist")
    original_import = builtins.__import__
    try:
        entries = LazyConfig.load(str(path))["methods"]
    # A config file is a program: whatever it raises is a mistake in the file.
    except Exception as error:
        raise ConfigError(f"methods file '{path}' fails with {type(error).__name__}: {error}") from error
    finally:
        # Detectron2 replaces it while a file runs, and does not put it back when the file fails.
        builtins.__import__ = original_import
    methods = [_read_method(entries, name, path) for name in names]
    labels = [method.label for method in methods]
    if len(set(labels)) != len(labels):
        raise ConfigError(f"methods file '{path}': two of the methods have the same label: {labels}")
    return methods


def _read_method(entries: DictConfig, text: str, path: Path) -> Method:
    name, _, weight = text.partition("@")
    if name not in entries:
        hint = did_you_mean(name, [str(key) for key in entries])
        raise ConfigError(f"methods file '{path}' has no method '{name}'; {hint}")
    entry = OmegaConf.to_container(entries[name], resolve=True)
    required = {"label", "method", "balancer"}
    if not isinstance(entry, dict) or not required <= set(entry) <= required | {"settings"}:
        raise ConfigError(
            f"methods file '{path}': '{name}' must have label, method and balancer, may have settings, and has "
            f"nothing else"
        )
    settings = entry.get("settings", {})
    if not isinstance(settings, dict):
        raise ConfigError(f"methods file '{path}': settings of '{name}' must map keys of a config to values")
    label, balancer = str(entry["label"]), entry["balancer"]
    if weight:
        if not isinstance(balancer.get("weights"), dict):
            raise ConfigError(f"--methods {text}: the balancer of '{name}' has no weights by name to set")
        try:
            balancer["weights"][DISTILL] = float(weight)
        except ValueError:
            raise ConfigError(f"--methods {text}: '{weight}' is not a number") from None
        label += f", weight {float(weight):g}"
    target = entry["method"]["_target_"]
    target = locate(target) if isinstance(target, str) else target
    return Method(text, label, entry["method"], balancer, getattr(target, "needs_teacher", True), settings)


def plan_teacher(options: argparse.Namespace) -> Teacher:
    """Where the teacher comes from.

    Raises:
        ConfigError: it is not there, and there is no config to train it with.
    """
    given: Path | None = options.teacher
    directory = options.output / "runs" / "teacher"
    is_there = given is not None and given.is_file()
    if options.teacher_config is None:
        if given is not None and not is_there:
            raise ConfigError(
                f"--teacher {given} does not exist; with --teacher-config FILE it is trained first"
            )
        return Teacher(given, None, False)
    overrides = (as_override("train.output_dir", str(directory)),)
    config = load_config(options.teacher_config, overrides)
    run = TrainingRun("teacher", options.teacher_config, directory, overrides, config)
    # Once begun here it stays the teacher of this comparison, even if the other file appears later.
    trained_here = not is_there or (directory / RECORD).is_file()
    return Teacher(run.weights if trained_here else given, run, trained_here)


def plan(options: argparse.Namespace, methods: Sequence[Method], teacher: Path | None) -> list[GridRun]:
    """All cells, seed by seed: an unfinished grid has its first seeds complete.

    Raises:
        ConfigError: a config is not one of a distillation, or has nothing to evaluate with.
    """
    runs = []
    for seed in options.seeds:
        for path in options.config:
            base = load_config(path, options.set)
            _check_config(base, path)
            for method in methods:
                directory = options.output / "runs" / path.stem / f"{method.name}_seed{seed}"
                overrides = [
                    *options.set,
                    as_override("train.output_dir", str(directory)),
                    f"train.seed={seed}",
                    f"dataloader.train.seed={seed}",
                    *method.overrides(base),
                ]
                weights = _teacher_weights(method, base, teacher)
                if weights is not None:
                    overrides.append(as_override("model.teacher_checkpoint", str(weights)))
                name = f"{method.label} (seed {seed})"
                runs.append(
                    GridRun(
                        f"{path.stem}: {name}" if len(options.config) > 1 else name,
                        path,
                        directory,
                        tuple(overrides),
                        load_config(path, overrides),
                        path.stem,
                        method,
                        seed,
                        weights,
                    )
                )
    return runs


def _teacher_weights(method: Method, config: DictConfig, teacher: Path | None) -> Path | None:
    """The file that a method's teacher comes from; None: it has no teacher, or one without a file."""
    configured = config.model.get("teacher_checkpoint")
    if not method.needs_teacher or not (teacher or configured):
        return None
    if teacher is None and not Path(configured).is_file():
        raise ConfigError(
            f"teacher checkpoint {configured} of the config does not exist; give --teacher FILE, or train one with "
            "--teacher-config FILE"
        )
    return teacher or Path(configured)


def _check_config(config: DictConfig, path: Path) -> None:
    if not {"student", "method", "teacher"} <= set(config.model):
        raise ConfigError(f"--config {path}: model must be a Distiller with student, teacher and method")
    if config.objectives.get(DISTILL) is None:
        raise ConfigError(f"--config {path}: the objectives {list(config.objectives)} must have '{DISTILL}'")
    if config.dataloader.get("test") is None or config.dataloader.get("evaluator") is None:
        raise ConfigError(f"--config {path}: dataloader.test and dataloader.evaluator are needed to compare")
