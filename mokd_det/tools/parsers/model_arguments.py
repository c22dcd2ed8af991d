"""Arguments of the tools that look at trained models: --run, --model, --labels, --set.

No command line of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mokd_det.errors import ConfigError
from mokd_det.model_zoo import find_config_file

__all__ = ["ModelFiles", "add_model_arguments", "model_files"]


@dataclass(frozen=True)
class ModelFiles:
    """A trained model.

    Attributes:
        name: for people.
        config: its configuration.
        weights: its checkpoint.
    """

    name: str
    config: Path
    weights: Path


class _InOrder(argparse.Action):
    """Collects --run and --model in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        found = [*(getattr(namespace, self.dest) or []), values if isinstance(values, list) else [values]]
        setattr(namespace, self.dest, found)


def add_model_arguments(parser: argparse.ArgumentParser, *, several: bool) -> None:
    """Add the arguments; ``several`` models may be given, or exactly one."""
    again = "; may be repeated" if several else ""
    parser.add_argument(
        "--run",
        action=_InOrder,
        dest="models",
        type=Path,
        metavar="DIR",
        help=f"a model: output directory of a training (config.yaml, student_final.pth){again}",
    )
    parser.add_argument(
        "--model",
        action=_InOrder,
        dest="models",
        nargs=2,
        type=Path,
        metavar=("CONFIG", "WEIGHTS"),
        help=f"a model: config file and checkpoint; of a distillation, the student{again}",
    )
    if several:
        parser.add_argument("--labels", nargs="+", metavar="TEXT", help="one name per model")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        dest="overrides",
        metavar="key=value",
        help="overrides of the configuration, e.g. train.device=cpu",
    )


def model_files(options: argparse.Namespace, *, several: bool) -> list[ModelFiles]:
    """The models of the command line.

    Raises:
        ConfigError: none, too many, an unfinished run, or another number of labels.
    """
    given: Sequence[Sequence[Path]] = options.models or []
    if not given:
        raise ConfigError("no model: give --run DIR, or --model CONFIG WEIGHTS")
    if len(given) > 1 and not several:
        raise ConfigError(f"--run and --model name {len(given)} models; give one")
    labels = getattr(options, "labels", None)
    if labels is not None and len(labels) != len(given):
        raise ConfigError(f"--labels gives {len(labels)} names for {len(given)} models; give one per model")
    found = [_of_run(*paths) if len(paths) == 1 else _of_files(*paths) for paths in given]
    return [ModelFiles(labels[i] if labels else name, *files) for i, (name, *files) in enumerate(found)]


def _of_run(directory: Path) -> tuple[str, Path, Path]:
    config, weights = directory / "config.yaml", directory / "student_final.pth"
    for path in (config, weights):
        if not path.is_file():
            raise ConfigError(
                f"--run {directory}: no {path.name} there, so this is no finished training; --model CONFIG WEIGHTS "
                f"takes any checkpoint"
            )
    return directory.resolve().name, config, weights


def _of_files(config: Path, weights: Path) -> tuple[str, Path, Path]:
    find_config_file(config)
    return config.stem, config, weights
