"""What each run has reached, at a glance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mokd_det.evaluation.model_findings import ModelFindings
from mokd_det.evaluation.replicate_statistics import estimate
from mokd_det.report.run_record import RunGroup, RunRecord
from mokd_det.report.section import Section, metric_titles

__all__ = ["overview_section"]


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
