"""What is kept of a run of a comparison: small enough to commit, enough to build the table again without weights, on
another machine, from the runs of several."""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import mokd_det
from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.errors import ConfigError
from mokd_det.evaluation.method_comparison import MethodRuns, RunResult
from mokd_det.experiments.method_grid import GridRun
from mokd_det.visualization import read_run

__all__ = [
    "METRICS",
    "ReplicateRecord",
    "check_together",
    "make_record",
    "method_runs",
    "read_records",
    "write_record",
]

FORMAT = 1
METRICS = {
    "AP": "bbox/AP",
    "AP50": "bbox/AP50",
    "AP75": "bbox/AP75",
    "top1": "classification/top1",
    "top5": "classification/top5",
}
"""What runs can be compared by: only such of which more is better."""


@dataclass(frozen=True)
class ReplicateRecord:
    """One run: a method in a replicate.

    Attributes:
        student: name of the config.
        method: name in the methods file, with its weight.
        label: the method for people.
        replicate: its number.
        half: "full" or "limited" instruction set.
        capability: that instruction set, or the GPU.
        settings: digest of the configuration without seeds and places; equal for all replicates of a method.
        base: the same without the method; equal for all methods of a student.
        own_settings: what the method brings with it.
        data: digests of the training images to draw from ("train") and of those the final values are from ("test").
        final_on: name of the latter.
        task: of the results, "bbox" or "classification".
        values: metric → final value in percent.
        iterations: of the evaluations during the training.
        curves: metric → its values there, on the validation data.
        length: iterations of the training.
        seconds_per_iteration: median; None: none was logged.
        losses: objective → mean over the last tenth of the training.
        weights: objective → mean weight of its loss's gradient over the training.
        teacher: "digest" of its file, and its "values" on the same data; empty: none.
        versions: of this package, torch and Python.
        machine: the processor's architecture.
        directory: of the run, relative to the output directory.
        command: that trains it alone.
    """

    student: str
    method: str
    label: str
    replicate: int
    half: str
    capability: str
    settings: str
    base: str
    own_settings: Mapping[str, Any]
    data: Mapping[str, str]
    final_on: str
    task: str
    values: Mapping[str, float]
    iterations: Sequence[int]
    curves: Mapping[str, Sequence[float]]
    length: int
    seconds_per_iteration: float | None
    losses: Mapping[str, float]
    weights: Mapping[str, float]
    teacher: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: str
    directory: str
    command: str

    @property
    def file_name(self) -> str:
        """Of the record, below the folder ``records``."""
        return f"{self.student}.{self.method}.r{self.replicate}.json"


def make_record(
    run: GridRun,
    output: Path,
    *,
    data: Mapping[str, str],
    test_dataset: str | None,
    teacher: Mapping[str, Any],
    command: str,
) -> ReplicateRecord:
    """What a finished run has logged, and what is known of its data, its teacher and its command.

    Raises:
        ConfigError: the run was never evaluated.
    """
    logged = read_run(run.directory)
    task = run.main_metric.partition("/")[0]
    paths = {name: path for name, path in METRICS.items() if path.partition("/")[0] == task}
    iterations, _ = logged.series(run.main_metric)
    if len(iterations) == 0:
        raise ConfigError(f"{run.directory} has logged no {run.main_metric}: train.eval_period must not be 0")
    curves = {name: logged.series(path)[1].tolist() for name, path in paths.items()}
    # During the training an evaluation is logged under the number of the last iteration, which starts at 0; at
    # the end under how many there were.
    length = run.config.train.max_iter
    values = (
        run.test_results()
        if test_dataset is not None
        else {name: curve[-1] for name, curve in curves.items() if curve}
    )
    seconds = logged.series("time")[1]
    last_tenth = {}
    for objective in logged.objectives:
        at, losses = logged.objective(objective)
        late = losses[at >= 0.9 * (length - 1)] if len(at) else losses
        if len(late):
            last_tenth[objective] = float(late.mean())
    weights = {name: logged.series(f"raw_weight/{name}")[1] for name in logged.objectives}
    return ReplicateRecord(
        student=run.student,
        method=run.method.name,
        label=run.method.label,
        replicate=run.replicate,
        half=run.half.name,
        capability=run.half.capability,
        settings=run.settings,
        base=run.base,
        own_settings={key: str(value) for key, value in run.method.settings.items() if key != "objectives"},
        data=data,
        final_on=test_dataset or "the validation data",
        task=task,
        values=_rounded(values),
        iterations=[min(iteration + 1, length) for iteration in iterations.tolist()],
        curves={name: [round(value, 4) for value in curve] for name, curve in curves.items()},
        length=length,
        seconds_per_iteration=round(statistics.median(seconds), 5) if len(seconds) else None,
        losses=_rounded(last_tenth),
        weights=_rounded({name: float(found.mean()) for name, found in weights.items() if len(found)}),
        teacher=teacher,
        versions={
            "mokd_det": mokd_det.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        machine=platform.machine(),
        directory=str(run.directory.relative_to(output)),
        command=command,
    )


def _rounded(values: Mapping[str, float | None]) -> dict[str, float]:
    """Finite values with five decimals; COCO has no value for sizes that do not occur."""
    return {name: round(float(v), 5) for name, v in values.items() if v is not None and math.isfinite(v)}


def write_record(record: ReplicateRecord, folder: Path) -> None:
    """Write a record's file into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / record.file_name, "w") as file:
        json.dump({"format": FORMAT, **asdict(record)}, file, indent=1)
        file.write("\n")


def read_records(folders: Sequence[Path]) -> list[ReplicateRecord]:
    """The records in some folders and below them.

    Raises:
        ConfigError: no such folder, no record in it, a file that is none, or two records of one run.
    """
    found: dict[str, tuple[Path, ReplicateRecord]] = {}
    for folder in folders:
        files = sorted(folder.rglob("*.r[0-9]*.json")) if folder.is_dir() else []
        if not files:
            raise ConfigError(f"--records {folder}: there is no record STUDENT.METHOD.rREPLICATE.json in it")
        for file in files:
            record = _read_record(file)
            other = found.get(record.file_name)
            if other is not None and other[1] != record:
                raise ConfigError(f"{file} and {other[0]} are two runs of one method and replicate; keep one")
            found[record.file_name] = (file, record)
    return sorted((record for _, record in found.values()), key=lambda record: record.replicate)


def _read_record(file: Path) -> ReplicateRecord:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError(f"format must be {FORMAT}")
        record = ReplicateRecord(**content)
        if not math.isfinite(sum(record.values.values())) or not record.iterations:
            raise ValueError("values or iterations are missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is not a record of a comparison: {error}") from None
    return record


def check_together(records: Sequence[ReplicateRecord]) -> None:
    """Refuse records that do not belong into one table.

    Raises:
        ConfigError: naming two that differ: in a method's settings between replicates, in what the methods of a student
            share, or in the test images.
    """

    def differ(
        what: str, key: Callable[[ReplicateRecord], Any], group: Callable[[ReplicateRecord], Any]
    ) -> None:
        first: dict[Any, ReplicateRecord] = {}
        for record in records:
            one = first.setdefault(group(record), record)
            if key(one) != key(record):
                raise ConfigError(f"{one.file_name} and {record.file_name} {what}; compare them separately")

    differ("are results of different kinds", lambda r: r.task, lambda r: None)
    differ(
        "were evaluated on different test images",
        lambda r: (r.final_on, r.data.get("test")),
        lambda r: None,
    )
    differ("were trained with different settings", lambda r: r.settings, lambda r: (r.student, r.method))
    differ("differ in more than the method", lambda r: (r.base, r.data.get("train")), lambda r: r.student)


def method_runs(
    records: Sequence[ReplicateRecord], metric: str, methods: Sequence[str]
) -> dict[str, list[MethodRuns]]:
    """Student → its methods in the given order, with the results of their replicates.

    Raises:
        ConfigError: a method with fewer than two replicates, or a record without the metric.
    """
    students: dict[str, list[MethodRuns]] = {}
    for student in dict.fromkeys(record.student for record in records):
        for method in methods:
            found = [record for record in records if (record.student, record.method) == (student, method)]
            if len(found) < 2:
                raise ConfigError(
                    f"{student}: method '{method}' has {len(found)} replicates; a comparison needs two or more"
                )
            runs = {}
            for record in found:
                if metric not in record.values or metric not in record.curves:
                    raise ConfigError(
                        f"{record.file_name} has no {metric}; it has {', '.join(record.values)}"
                    )
                runs[record.replicate] = RunResult(
                    record.values[metric],
                    record.iterations,
                    record.curves[metric],
                    math.nan if record.seconds_per_iteration is None else record.seconds_per_iteration,
                    record.half,
                )
            students.setdefault(student, []).append(MethodRuns(method, found[0].label, runs))
    return students
