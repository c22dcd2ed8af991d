"""What a run has logged: ``metrics.json`` as series over iterations, losses summed by objective and term."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mokd_det.errors import ConfigError

__all__ = ["RunMetrics", "Series", "read_run", "read_run_config"]

Series = tuple[np.ndarray, np.ndarray]
"""Iterations (N,) int64, ascending, and values (N,) float64; NaN where a value is not a number."""


@dataclass(frozen=True)
class RunMetrics:
    """The scalars of one run.

    Attributes:
        label: its name in legends; runs with the same label are drawn alike (seeds of one model).
        records: one mapping per logged iteration, ascending, each with "iteration".
        objectives: objective → patterns of its losses; empty if the run left no configuration.
        pattern_weights: objective → pattern → weight in its sum; 1 for those that are not listed.
    """

    label: str
    records: Sequence[Mapping[str, Any]]
    objectives: Mapping[str, Sequence[str]]
    pattern_weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Every scalar that occurs, in the order of appearance."""
        return list(dict.fromkeys(name for record in self.records for name in record if name != "iteration"))

    def series(self, *names: str, factors: Sequence[float] | None = None) -> Series:
        """Sum of the given scalars (times their factors) where all of them were logged."""
        found = [record for record in self.records if all(name in record for name in names)]
        iterations = np.array([record["iteration"] for record in found], dtype=np.int64)
        values = np.array([[_number(record[name]) for name in names] for record in found], dtype=np.float64)
        values = values.reshape(len(found), len(names))
        return iterations, (values if factors is None else values * factors).sum(axis=1)

    def losses(self, objective: str | None = None) -> list[str]:
        """Names of all losses, or of those of one objective."""
        losses = [name for name in self.names() if name.startswith("loss_")]
        if objective is None:
            return losses
        patterns = self.objectives.get(objective, ())
        return [name for name in losses if any(fnmatchcase(name, pattern) for pattern in patterns)]

    def objective(self, objective: str | None = None) -> Series:
        """The sum of an objective's losses as it was trained, or of all losses, where all of them were logged."""
        names = self.losses(objective)
        weights = self.pattern_weights.get(objective or "", {})
        factors = [
            next((weight for pattern, weight in weights.items() if fnmatchcase(name, pattern)), 1.0)
            for name in names
        ]
        return self.series(*names, factors=factors) if names else self.series("")

    def terms(self, objective: str | None = None) -> dict[str, list[str]]:
        """Term → its losses: ``loss_ce`` and ``loss_ce_0`` … of the auxiliary levels are the term "ce"."""
        terms: dict[str, list[str]] = {}
        for name in self.losses(objective):
            terms.setdefault(re.sub(r"_\d+$", "", name).removeprefix("loss_"), []).append(name)
        return terms

    def weights(self) -> dict[str, Series]:
        """Objective → its weight π over iterations."""
        return {
            name.removeprefix("pi/"): self.series(name) for name in self.names() if name.startswith("pi/")
        }


def read_run(directory: str | os.PathLike[str], label: str | None = None) -> RunMetrics:
    """Read the metrics of a run, finished or still running, and its objectives if there is a ``config.yaml``.

    Losses and weights in them are Detectron2's medians over the last 20 iterations. The label is by default the
    directory's name.

    Raises:
        ConfigError: there is no ``metrics.json``, nothing is logged in it yet, or it is not what a run writes.
    """
    directory = Path(directory)
    path = directory / "metrics.json"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{directory} is no run's output directory: it has no metrics.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    # What follows the last line break is a line that a running process has not finished.
    merged: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            merged.setdefault(int(record["iteration"]), {}).update(record)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            raise ConfigError(f"{path}, line {number}: not a JSON object with a number 'iteration'") from None
    if not merged:
        raise ConfigError(f"{path} has no complete line: the run has not logged anything yet")
    records = [merged[iteration] for iteration in sorted(merged)]
    name = label if label is not None else directory.resolve().name
    groups = _read_objectives(directory / "config.yaml")
    return RunMetrics(name, records, {name: list(patterns) for name, patterns in groups.items()}, groups)


def read_run_config(path: Path) -> tuple[dict[str, Any], str]:
    """A run's configuration, and the same as written; empty if it left none.

    Raises:
        ConfigError: the file cannot be read or is no YAML mapping.
    """
    if not path.is_file():
        return {}, ""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a configuration: its top level is a {type(content).__name__}")
    return content, text


def _read_objectives(path: Path) -> dict[str, dict[str, float]]:
    """Objective → pattern → weight."""
    content, _ = read_run_config(path)
    if not path.is_file():
        return {}
    try:
        # A run's method may be a choice of its config: the objectives are a reference then.
        groups = OmegaConf.to_container(OmegaConf.create(content)["objectives"], resolve=True)
        return {
            str(name): {
                str(pattern): float(group[pattern]) if isinstance(group, Mapping) else 1.0
                for pattern in group
            }
            for name, group in groups.items()
            if group is not None
        }
    except (KeyError, TypeError, AttributeError, ValueError, OmegaConfBaseException):
        raise ConfigError(
            f"{path} does not define 'objectives' as names with lists of loss patterns"
        ) from None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")
