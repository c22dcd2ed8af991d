"""Everything that a run's output directory tells, whatever it was trained for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mokd_det.errors import ConfigError
from mokd_det.visualization.run_metrics import RunMetrics, read_run, read_run_config

__all__ = ["RESULT_NAMES", "RunGroup", "RunRecord", "flatten", "group_runs", "read_record"]

RESULT_NAMES = ("AP", "top1", "AP50", "AP75", "top5", "ece", "APs", "APm", "APl")
"""Names of evaluation results, after the last "/", the main ones first: what a page calls a run by."""

_MAIN = RESULT_NAMES[:2]

# How many the style sheet has.
_COLOURS = 8


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        label: its name for people.
        metrics: what it has logged.
        config: its resolved configuration; empty if it left none.
        config_text: the same as written.
        test_results: of an evaluation after the training, by "task/metric"; empty if there was none.
        environment: (what, version) of the programs and devices it ran with.
    """

    label: str
    directory: Path
    metrics: RunMetrics
    config: Mapping[str, Any]
    config_text: str
    test_results: Mapping[str, float]
    environment: Sequence[tuple[str, str]]

    @property
    def weights(self) -> Path | None:
        """The trained student's file, if the training has finished."""
        file = self.directory / "student_final.pth"
        return file if file.is_file() else None

    def result_names(self) -> list[str]:
        """ "task/metric" of everything that was evaluated during the training, the main metric first."""
        return _results(self.metrics.names())

    def tested_names(self) -> list[str]:
        """The same of the evaluation after the training."""
        return _results(self.test_results)

    def main_metric(self) -> str | None:
        """The name of the figure that the run is judged by; None: it was never evaluated."""
        names = [*self.result_names(), *self.tested_names()]
        found = [name for name in names if name.rpartition("/")[2] in _MAIN]
        return min(found, key=lambda name: _MAIN.index(name.rpartition("/")[2]), default=None)

    def last(self, name: str) -> float | None:
        """The last value of a scalar; None: there is none."""
        values = self._finite(name)
        return float(values[-1]) if len(values) else None

    def median(self, name: str) -> float | None:
        """The median of a scalar over everything logged."""
        values = self._finite(name)
        return float(np.median(values)) if len(values) else None

    def _finite(self, name: str) -> np.ndarray:
        values = self.metrics.series(name)[1]
        return values[np.isfinite(values)]

    def per_class(self, metric: str) -> dict[str, float]:
        """Class → its last value of a metric, from the test results if they have it; NaN: no object of it."""
        prefix = f"{metric}-"
        values = {name: value for name, value in self.test_results.items() if name.startswith(prefix)}
        if not values:
            logged = {n: self.metrics.series(n)[1] for n in self.metrics.names() if n.startswith(prefix)}
            values = {name: float(y[-1]) if len(y) else float("nan") for name, y in logged.items()}
        return {name.removeprefix(prefix): value for name, value in values.items()}

    def iterations(self) -> tuple[int, int | None]:
        """How many are done, and how many there are to be, if the configuration says so."""
        planned = self.setting("train.max_iter")
        planned = planned if isinstance(planned, int) else None
        logged = int(self.metrics.records[-1]["iteration"])
        # Records are numbered by the iteration just done, from 0; the last evaluation by how many there were.
        done = logged if planned is not None and logged >= planned else logged + 1
        return done, planned

    def setting(self, path: str) -> Any:
        """A value of the configuration by its dotted path; None: there is none."""
        node: Any = self.config
        for key in path.split("."):
            if not isinstance(node, Mapping) or key not in node:
                return None
            node = node[key]
        return node

    def target(self, path: str) -> str | None:
        """The name of the class that a part of the configuration builds, without its package."""
        name = self.setting(f"{path}._target_")
        return None if name is None else str(name).rpartition(".")[2]


def _results(names: Iterable[str]) -> list[str]:
    """Those of evaluations, the main metric first."""
    found = [name for name in names if name.rpartition("/")[2] in RESULT_NAMES]
    return sorted(found, key=lambda name: RESULT_NAMES.index(name.rpartition("/")[2]))


@dataclass(frozen=True)
class RunGroup:
    """Runs of one label that differ only in their seed, or a single one, and the group's number on the page."""

    label: str
    number: int
    runs: Sequence[RunRecord]

    @property
    def colour(self) -> int:
        """Number of the page's colour."""
        return self.number % _COLOURS

    @property
    def style(self) -> int:
        """Number of the line style, which tells runs of one colour apart."""
        return self.number // _COLOURS

    @property
    def first(self) -> RunRecord:
        """The run that stands for all where a picture needs one model."""
        return self.runs[0]


def read_record(directory: str | os.PathLike[str], label: str | None = None) -> RunRecord:
    """Read a run's output directory, finished or still running; its label is by default the directory's name.

    Raises:
        ConfigError: it is no run's directory, or a file in it is not what a run writes.
    """
    directory = Path(directory)
    metrics = read_run(directory, label)
    config, text = read_run_config(directory / "config.yaml")
    results = {
        **_read_results(directory / "results.json"),
        **_read_results(directory / "test" / "results.json"),
    }
    environment = _read_environment(directory / "environment.txt")
    return RunRecord(metrics.label, directory, metrics, config, text, results, environment)


def group_runs(runs: Sequence[RunRecord]) -> list[RunGroup]:
    """Runs with equal labels together, in the order of appearance."""
    labels = dict.fromkeys(run.label for run in runs)
    return [RunGroup(label, i, [run for run in runs if run.label == label]) for i, label in enumerate(labels)]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_results(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            f"{task}/{metric}": float("nan") if value is None else float(value)
            for task, metrics in content.items()
            for metric, value in (metrics.items() if isinstance(metrics, dict) else [("", metrics)])
            if value is None or isinstance(value, (int, float))
        }
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not what an evaluation writes: {error}") from None


_SHOWN = re.compile(
    r"^(Python|PyTorch|numpy|detectron2|GPU[ \d,]*|CUDA_HOME|TORCH_CUDA.*|torchvision)\s{2,}(.+)$"
)


def _read_environment(path: Path) -> list[tuple[str, str]]:
    """Versions and devices from Detectron2's description of the environment."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [_SHOWN.match(line) for line in lines]
    # Where a package lies is nobody's business.
    return [(match[1].strip(), match[2].partition(" @")[0].strip()) for match in found if match]
