"""What tables say of the runs: their results at a glance, their comparison, what they cost, how they were set up."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mokd_det.evaluation.method_comparison import table_cells
from mokd_det.evaluation.model_findings import ModelFindings
from mokd_det.evaluation.replicate_statistics import estimate
from mokd_det.report.comparison_record import ComparisonRecord
from mokd_det.report.run_record import RunGroup, RunRecord, flatten
from mokd_det.report.section import Section, absent_section, metric_titles

__all__ = ["comparison_section", "configuration_section", "overview_section", "speed_section"]

_PARTS = ("data", "teacher", "student", "balance")
_NOTHING = object()

_FACTS: Mapping[str, str] = {
    "method": "model.method._target_",
    "balancer": "balancer._target_",
    "teacher's weights": "model.teacher_checkpoint",
    "training data": "dataloader.train.dataset",
    "images per step": "dataloader.train.total_batch_size",
    "iterations": "train.max_iter",
    "optimiser": "optimizer._target_",
    "learning rate": "optimizer.lr",
    "seed": "train.seed",
}


def overview_section(groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings]) -> Section:
    """A card for each run with its main figure, and a table with the others."""
    tested = any(run.test_results for group in groups for run in group.runs)
    names = list(
        dict.fromkeys(
            name
            for group in groups
            for run in group.runs
            for name in (run.tested_names() if tested else run.result_names())
        )
    )
    titles = metric_titles(names)
    cells = {name: [_result(group, name, tested) for group in groups] for name in names}
    # COCO has no small, medium or large objects in many data sets.
    names = [name for name in names if any(cell != "–" for cell in cells[name])]
    rows = []
    for number, group in enumerate(groups):
        done, planned = group.first.iterations()
        found = findings.get(group.label)
        rows.append(
            [
                group.label,
                *(cells[name][number] for name in names),
                f"{done:,}" if planned in (None, done) else f"{done:,} of {planned:,}",
                "–" if found is None or found.parameters is None else f"{found.parameters:,}",
                _method(group.first),
                group.first.target("balancer") or "–",
            ]
        )
    data = {
        "cards": [(group, *_card(group)) for group in groups],
        "heads": ["", *(titles[name] for name in names), "iterations", "parameters", "method", "balancer"],
        "rows": rows,
        "tested": tested,
        "several": any(len(group.runs) > 1 for group in groups),
    }
    return Section("overview", "Overview", "Overview", "overview", data)


def _result(group: RunGroup, name: str, tested: bool) -> str:
    """A result of all seeds."""
    values = [run.test_results.get(name) if tested else run.last(name) for run in group.runs]
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return estimate(numbers).text() if numbers else "–"


def _card(group: RunGroup) -> tuple[str, str]:
    """The main figure and what it is."""
    metric = group.first.main_metric()
    what, figure = "never evaluated", "–"
    if metric is not None:
        tested = [run.test_results[metric] for run in group.runs if metric in run.test_results]
        last = [value for value in (run.last(metric) for run in group.runs) if value is not None]
        values = tested if len(tested) == len(group.runs) else last
        where = "test data" if values is tested else "validation data"
        if values:
            figure = f"{sum(values) / len(values):.1f}"
        what = f"{metric_titles([metric])[metric]} on the {where}"
        if len(values) > 1:
            what += f", mean of {len(values)} seeds"
    done, planned = group.first.iterations()
    if planned is not None and done < planned:
        what += f"; {done:,} of {planned:,} iterations"
    return figure, what


def _method(run: RunRecord) -> str:
    parts = run.setting("model.method.parts")
    if isinstance(parts, Mapping):
        return " + ".join(run.target(f"model.method.parts.{name}") or str(name) for name in parts)
    return run.target("model.method") or ("–" if not run.config else "none (trained alone)")


def comparison_section(comparison: ComparisonRecord, number: int) -> Section:
    """The table of a comparison and what it allows to say."""
    tables = []
    for student, rows in comparison.tables.items():
        head, *body = table_cells(rows, comparison.metric, comparison.references[student])
        head[1] += f" on {comparison.final_on}"
        tables.append((student, head, body, comparison.verdicts[student]))
    return Section(f"comparison{number or ''}", "Comparison", "Comparison", "comparison", {"tables": tables})


def speed_section(groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings]) -> Section:
    """Where the time of a training step goes, and how long an image takes."""
    steps = []
    for group in groups:
        whole = _median(group, "time")
        if whole is not None:
            parts = [_median(group, f"{part}_time") or 0.0 for part in _PARTS]
            parts.append(max(0.0, whole - sum(parts)))
            steps.append((group.label, parts, f"{whole:.3f} s"))
    models = [
        [
            group.label,
            f"{found.parameters:,}",
            f"{1000 * found.latency.median:.1f}",
            f"{found.latency.fps:.1f}",
            f"{found.device}, {len(found.latency.seconds)} passes of one image",
        ]
        for group in groups
        if (found := findings.get(group.label)) is not None and found.latency is not None
    ]
    longest = max((sum(parts) for _, parts, _ in steps), default=0.0)
    return Section("speed", "Speed", "Speed", "speed", {"steps": steps, "longest": longest, "models": models})


def _median(group: RunGroup, name: str) -> float | None:
    """Over the seeds, of each one's median."""
    found = [value for value in (run.median(name) for run in group.runs) if value is not None]
    return statistics.median(found) if found else None


def configuration_section(groups: Sequence[RunGroup]) -> Section:
    """What differs between the runs, then each configuration in full."""
    configured = [group for group in groups if group.first.config]
    if not configured:
        return absent_section("configuration", "Configuration", "The runs left no config.yaml.")
    flat = [flatten(group.first.config) for group in configured]
    keys = dict.fromkeys(key for one in flat for key in one)
    different = [
        [key, *(_setting(one.get(key, _NOTHING)) for one in flat)]
        for key in keys
        if any(one.get(key, _NOTHING) != flat[0].get(key, _NOTHING) for one in flat)
    ]
    data = {"groups": configured, "facts": _key_facts(configured), "different": different}
    return Section("configuration", "Configuration", "Configuration", "configuration", data)


def _key_facts(groups: Sequence[RunGroup]) -> list[list[str]]:
    rows = []
    for name, path in _FACTS.items():
        values = []
        for group in groups:
            found = list(dict.fromkeys(_setting(run.setting(path)) for run in group.runs))
            short = [value.rpartition(".")[2] if path.endswith("_target_") else value for value in found]
            values.append(", ".join(short))
        if any(value not in ("–", "") for value in values):
            rows.append([name, *values])
    return rows


def _setting(value: Any) -> str:
    if value is _NOTHING or value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, default=str)
