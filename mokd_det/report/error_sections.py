"""Where models are good and bad: by class, and by type of error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mokd_det.evaluation.tide import ERROR_TYPES, SPECIAL_TYPES, TideReport
from mokd_det.report.bars import Bar, BarGroup, bar_groups, stacked_bars
from mokd_det.report.markup import Content, element
from mokd_det.report.model_findings import ModelFindings
from mokd_det.report.run_record import RunGroup
from mokd_det.report.section import (
    Section,
    absent,
    colour_of,
    legend,
    metric_titles,
)

__all__ = ["errors_section", "per_class_section"]

_MAX_CLASSES = 120


def per_class_section(groups: Sequence[RunGroup]) -> Section:
    """The main metric of each class."""
    values: dict[str, list[dict[str, float]]] = {}
    metric = None
    for group in groups:
        metric = metric or group.first.main_metric()
        found = group.first.main_metric()
        values[group.label] = [run.per_class(found) for run in group.runs] if found else []
    classes = list(dict.fromkeys(name for runs in values.values() for run in runs for name in run))
    if not classes:
        return Section("classes", "Classes", "Per class", absent("The evaluation gave no figures per class."))

    def mean(label: str, name: str) -> float | None:
        numbers = [run[name] for run in values[label] if name in run and math.isfinite(run[name])]
        return sum(numbers) / len(numbers) if numbers else None

    groups = [group for group in groups if any(values[group.label])]
    bar_lists = []
    for name in classes:
        bars = [
            Bar(group.label, colour_of(group), value, "–" if value is None else f"{value:.1f}")
            for group in groups
            for value in [mean(group.label, name)]
        ]
        bar_lists.append(BarGroup(name, bars))
    bar_lists.sort(key=lambda group: -_mean_of([bar.value for bar in group.bars if bar.value is not None]))
    hidden = len(bar_lists) - _MAX_CLASSES
    note = None
    if hidden > 0:
        bar_lists = bar_lists[: _MAX_CLASSES // 2] + bar_lists[-(_MAX_CLASSES // 2) :]
        note = element(
            "p", f"The best and the worst 60; {hidden} classes between them are left out.", class_="note"
        )
    tested = any(run.test_results for group in groups for run in group.runs)
    where = (
        "test data where there are any, else validation data"
        if tested
        else "validation data, last evaluation"
    )
    return Section(
        "classes",
        "Classes",
        f"{metric_titles([metric])[metric] if metric else ''} per class",
        [
            element("p", f"Percent; {where}; the best classes first.", class_="soft"),
            legend(groups),
            bar_groups(bar_lists, dense=True),
            note,
        ],
    )


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else -1.0


def errors_section(groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings]) -> Section | None:
    """TIDE's error types; None for classifiers only."""
    if groups and all(group.label in findings and findings[group.label].classified for group in groups):
        return None
    content: list[Content] = [_problems(groups, findings)]
    reports = {group.label: report for group in groups if (report := _tide(findings, group)) is not None}
    shown = [group for group in groups if group.label in reports]
    if not shown:
        content.append(absent("TIDE needs a trained detector and the images that it is evaluated on."))
        return Section("errors", "Errors", "What AP is lost to", content)
    first = findings[shown[0].label]
    content.append(
        element(
            "p",
            f"TIDE on {first.images:,} of {first.of_images:,} images of {first.dataset}: AP points that would be won "
            "if all errors of one type were mended, and those alone. They do not add up to what is missing.",
            class_="soft",
        )
    )
    content.append(legend(shown))
    for number, errors in enumerate(reports[shown[0].label].errors):
        title = f"IoU ≥ {errors.threshold:g}"
        bars = _error_bars(shown, reports, number)
        if number == 0:
            content += [element("h3", title), *bars]
        else:
            content.append(element("details", element("summary", title), bars))
    notes = [note for report in reports.values() for note in report.notes()]
    if notes:
        content.append(element("ul", (element("li", note) for note in notes)))
    return Section("errors", "Errors", "What AP is lost to", content)


def _error_bars(groups: Sequence[RunGroup], reports: Mapping[str, TideReport], number: int) -> list[Content]:
    """All types at one threshold, and class against place."""
    found = [(group, reports[group.label].errors[number]) for group in groups]
    bars = [
        BarGroup(
            name,
            [Bar(g.label, colour_of(g), errors.dap[name], f"{errors.dap[name]:.1f}") for g, errors in found],
            hint,
        )
        for name, hint in {**ERROR_TYPES, **SPECIAL_TYPES}.items()
    ]
    rows = []
    for group, errors in found:
        cls, loc, share = errors.dap["Cls"], errors.dap["Loc"], errors.classification_share
        words = "nothing lost" if share is None else f"{cls:.1f} + {loc:.1f} ({share:.0%} class)"
        rows.append((group.label, [cls, loc], words))
    aps = ", ".join(f"{group.label} {errors.ap:.1f}" for group, errors in found)
    return [
        element("p", f"AP at this threshold: {aps}."),
        bar_groups(bars),
        element("h4", "Class against place", class_="apart"),
        stacked_bars(rows, ["classification (Cls)", "localisation (Loc)"], unit="dAP"),
    ]


def _tide(findings: Mapping[str, ModelFindings], group: RunGroup) -> TideReport | None:
    found = findings.get(group.label)
    return None if found is None else found.tide


def _problems(groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings]) -> Content:
    return [
        element("p", f"{group.label}: {problem}", class_="problem")
        for group in groups
        if group.label in findings
        for problem in findings[group.label].problems
    ]
