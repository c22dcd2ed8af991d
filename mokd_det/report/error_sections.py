"""Where models are good and bad: by class, and by type of error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mokd_det.evaluation.model_findings import ModelFindings
from mokd_det.evaluation.tide import ERROR_TYPES, SPECIAL_TYPES, TideReport
from mokd_det.report.run_record import RunGroup
from mokd_det.report.section import Section, absent_section, metric_titles

__all__ = ["errors_section", "per_class_section"]

_MAX_CLASSES = 120


def per_class_section(groups: Sequence[RunGroup]) -> Section:
    """The main metric of each class."""
    values: dict[str, list[dict[str, float]]] = {}
    metric = None
    for group in groups:
        found = group.first.main_metric()
        metric = metric or found
        values[group.label] = [run.per_class(found) for run in group.runs] if found else []
    classes = dict.fromkeys(name for runs in values.values() for run in runs for name in run)
    if not classes:
        return absent_section("classes", "Per class", "The evaluation gave no figures per class.")

    def mean(label: str, name: str) -> float | None:
        return _mean(run[name] for run in values[label] if name in run and math.isfinite(run[name]))

    groups = [group for group in groups if any(values[group.label])]
    means = {name: [mean(group.label, name) for group in groups] for name in classes}
    order = sorted(classes, key=lambda name: -(_mean(v for v in means[name] if v is not None) or -1.0))
    hidden = len(order) - _MAX_CLASSES
    if hidden > 0:
        order = order[: _MAX_CLASSES // 2] + order[-(_MAX_CLASSES // 2) :]
    bars = [
        (name, "", [(g, v, "–" if v is None else f"{v:.1f}") for g, v in zip(groups, means[name])])
        for name in order
    ]
    data = {
        "groups": groups,
        "bars": bars,
        "highest": _highest(bars),
        "tested": any(run.test_results for group in groups for run in group.runs),
        "hidden": hidden,
        "shown": _MAX_CLASSES,
    }
    title = metric_titles([metric])[metric] if metric else ""
    return Section("classes", "Classes", f"{title} per class", "classes", data)


def _mean(values: Any) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None


def _highest(bars: Sequence[tuple[str, str, Sequence[tuple[RunGroup, float | None, str]]]]) -> float:
    return max((value or 0.0 for _, _, group in bars for _, value, _ in group), default=0.0)


def errors_section(groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings]) -> Section | None:
    """TIDE's error types; None for classifiers only."""
    found = {group.label: findings[group.label] for group in groups if group.label in findings}
    if groups and all(group.label in found and found[group.label].classified for group in groups):
        return None
    reports = {label: one.tide for label, one in found.items() if one.tide is not None}
    shown = [group for group in groups if group.label in reports]
    data: dict[str, Any] = {
        "problems": [(label, problem) for label, one in found.items() for problem in one.problems],
        "groups": shown,
    }
    if shown:
        first = reports[shown[0].label]
        data["first"] = found[shown[0].label]
        data["thresholds"] = [_threshold(shown, reports, number) for number in range(len(first.errors))]
        data["notes"] = [note for report in reports.values() for note in report.notes()]
    return Section("errors", "Errors", "What AP is lost to", "errors", data)


def _threshold(groups: Sequence[RunGroup], reports: Mapping[str, TideReport], number: int) -> tuple:
    """All types at one threshold, and class against place."""
    found = [(group, reports[group.label].errors[number]) for group in groups]
    bars = [
        (name, hint, [(group, errors.dap[name], f"{errors.dap[name]:.1f}") for group, errors in found])
        for name, hint in {**ERROR_TYPES, **SPECIAL_TYPES}.items()
    ]
    rows = []
    for group, errors in found:
        cls, loc, share = errors.dap["Cls"], errors.dap["Loc"], errors.classification_share
        words = "nothing lost" if share is None else f"{cls:.1f} + {loc:.1f} ({share:.0%} class)"
        rows.append((group.label, [cls, loc], words))
    aps = ", ".join(f"{group.label} {errors.ap:.1f}" for group, errors in found)
    longest = max(cls + loc for _, (cls, loc), _ in rows)
    return f"IoU ≥ {found[0][1].threshold:g}", aps, bars, _highest(bars), rows, longest
