"""What the committed replicates say about a method, in the comparison's own words: no run of a demo can replace it."""

from __future__ import annotations

from pathlib import Path

from mokd_det.errors import ConfigError
from mokd_det.evaluation.method_comparison import compare, power_sentence, verdicts
from mokd_det.experiments.records import check_together, method_runs, read_records

__all__ = ["replicates_say"]


def replicates_say(folder: Path, method: str, metric: str, baseline: str = "none") -> str:
    """The verdict on a method over all replicates in a folder of records, and what they could have seen.

    The method's interval to ``baseline``, no distillation, holds for all methods of the folder, which is one
    student's, at once.

    Raises:
        ConfigError: records that are missing, damaged or do not belong together, or none of the method.
    """
    records = read_records([folder])
    check_together(records)
    methods = sorted({record.method for record in records}, key=lambda name: (name != baseline, name))
    (runs,) = method_runs(records, metric, methods).values()
    rows = compare(runs, baseline)
    found = [row for row in rows if row.name in (method, baseline)]
    if len(found) < 2 or found[-1].difference is None:
        raise ConfigError(f"{folder} has no replicates of the method '{method}'; it has {', '.join(methods)}")
    return (
        f"{found[-1].difference.count} replicates, {metric} on {records[0].final_on}, {len(rows) - 1} methods compared "
        f"at once: {verdicts(found, metric)[0]} {power_sentence(found, metric)}"
    )
