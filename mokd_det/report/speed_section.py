"""What training and inference cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from mokd_det.evaluation.model_findings import ModelFindings
from mokd_det.report.run_record import RunGroup
from mokd_det.report.section import Section

__all__ = ["speed_section"]

_PARTS = ("data", "teacher", "student", "balance")


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
