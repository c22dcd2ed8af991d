"""What a comparison of methods has written: which runs belong together, and what they allow to say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mokd_det.errors import ConfigError
from mokd_det.evaluation.method_comparison import ComparisonRow, MethodRuns, RunResult, compare, verdicts
from mokd_det.report.run_record import RunRecord, read_record

__all__ = ["ComparisonRecord", "is_comparison", "read_comparison"]

_FILE = "comparison.json"


@dataclass(frozen=True)
class ComparisonRecord:
    """One comparison.

    Attributes:
        final_on: name of the data of the final values.
        tables: student → rows, one per method.
        verdicts: student → a sentence per method.
        references: student → value whose first reaching is timed.
        runs: every training; replicates of one method have one label.
    """

    directory: Path
    metric: str
    final_on: str
    tables: dict[str, list[ComparisonRow]]
    verdicts: dict[str, list[str]]
    references: dict[str, float]
    runs: Sequence[RunRecord]


def is_comparison(directory: Path) -> bool:
    """Whether a directory was written by a comparison of methods."""
    return (directory / _FILE).is_file()


def read_comparison(directory: Path) -> ComparisonRecord:
    """Read a finished comparison and its runs.

    Raises:
        ConfigError: its file is not what the tool writes, or a run of it is not there any more.
    """
    path = directory / _FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries: list[dict[str, Any]] = content["runs"]
        students = list(dict.fromkeys(entry["student"] for entry in entries))
        methods = {
            student: _methods([entry for entry in entries if entry["student"] == student])
            for student in students
        }
        metric, baseline = str(content["metric"]), content["baseline"]
        references = {student: float(content["references"][student]) for student in students}
        final_on = str(content["final_on"])
        places = [(entry, directory / entry["directory"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not what a comparison writes: {error!r}") from None
    tables = {student: compare(found, baseline, references[student]) for student, found in methods.items()}
    said = {student: verdicts(rows, metric) for student, rows in tables.items()}
    runs = []
    for entry, place in places:
        label = _label(entry) if len(students) == 1 else f"{entry['student']}: {_label(entry)}"
        runs.append(read_record(place, label))
    return ComparisonRecord(directory, metric, final_on, tables, said, references, runs)


def _label(entry: dict[str, Any]) -> str:
    return str(entry.get("label", entry["method"]))


def _methods(entries: Sequence[dict[str, Any]]) -> list[MethodRuns]:
    labels: dict[str, str] = {}
    runs: dict[str, dict[int, RunResult]] = {}
    for entry in entries:
        labels[entry["method"]] = _label(entry)
        seconds = entry["seconds_per_iteration"]
        runs.setdefault(entry["method"], {})[int(entry["replicate"])] = RunResult(
            float(entry["final"]),
            entry["iterations"],
            entry["validation"],
            float("nan" if seconds is None else seconds),
            str(entry["half"]),
        )
    return [MethodRuns(method, labels[method], found) for method, found in runs.items()]
