"""What training and inference cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from mokd_det.report.bars import stacked_bars
from mokd_det.report.markup import Content, element
from mokd_det.report.model_findings import ModelFindings
from mokd_det.report.run_record import RunGroup
from mokd_det.report.section import (
    Section,
    absent,
    table,
)

__all__ = ["speed_section"]

_PARTS = ("data", "teacher", "student", "balance")


def speed_section(groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings]) -> Section:
    """Where the time of a training step goes, and how long an image takes."""
    rows = []
    for group in groups:
        whole = _median(group, "time")
        if whole is None:
            continue
        parts = [_median(group, f"{part}_time") or 0.0 for part in _PARTS]
        parts.append(max(0.0, whole - sum(parts)))
        rows.append((group.label, parts, f"{whole:.3f} s"))
    content: list[Content] = [element("h3", "Training: seconds per iteration")]
    if rows:
        names = ["data", "teacher", "student", "balancing", "everything else"]
        content.append(stacked_bars(rows, names, unit="s"))
        content.append(
            element(
                "p",
                "Medians of what was logged, on the machine of the training; of several seeds, their median.",
                class_="note",
            )
        )
    else:
        content.append(absent("No times were logged."))
    rows_of_models = []
    for group in groups:
        found = findings.get(group.label)
        if found is not None and found.latency is not None:
            rows_of_models.append(
                [
                    group.label,
                    f"{found.parameters:,}",
                    f"{1000 * found.latency.median:.1f}",
                    f"{found.latency.fps:.1f}",
                    f"{found.device}, {len(found.latency.seconds)} passes of one image",
                ]
            )
    content.append(element("h3", "Inference"))
    if rows_of_models:
        heads = ["", "parameters", "ms per image", "images per second", "measured on"]
        content.append(table(heads, rows_of_models, [False, True, True, True, False]))
        content.append(
            element(
                "p",
                "Median of the network's passes while this page was made, one model after the other, reading the image "
                "not included: beside other work on the machine, equal models can differ. For a careful measurement, "
                "with FLOPs and memory: python -m mokd_det analyze.",
                class_="note",
            )
        )
    else:
        content.append(absent("No trained model was run."))
    return Section("speed", "Speed", "Speed", content)


def _median(group: RunGroup, name: str) -> float | None:
    """Over the seeds, of each one's median."""
    found = [value for value in (run.median(name) for run in group.runs) if value is not None]
    return statistics.median(found) if found else None
