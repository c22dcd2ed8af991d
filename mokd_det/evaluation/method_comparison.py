"""Methods against a baseline over replicates: the numbers of one table, and the table as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tabulate import tabulate

from mokd_det.errors import ConfigError
from mokd_det.evaluation.replicate_statistics import (
    Estimate,
    detectable_difference,
    estimate,
    iterations_to_reach,
    median_to_reach,
    paired_differences,
    simultaneous,
)

__all__ = [
    "ComparisonRow",
    "MethodRuns",
    "RunResult",
    "compare",
    "comparison_csv",
    "comparison_markdown",
    "power_sentence",
    "table_cells",
    "verdicts",
]

_NONE = "–"


@dataclass(frozen=True)
class RunResult:
    """One training.

    Attributes:
        final: the reported metric, in percent.
        iterations, curve: of the evaluations during the training, ascending, and the metric on the validation data.
        seconds_per_iteration: median of the training steps.
        half: which half of the replicates it belongs to (the instruction set it ran with).
    """

    final: float
    iterations: Sequence[int]
    curve: Sequence[float]
    seconds_per_iteration: float
    half: str = "full"


@dataclass(frozen=True)
class MethodRuns:
    """All replicates of one method, replicate → result; its name is short and unique, its label for people."""

    name: str
    label: str
    runs: Mapping[int, RunResult]

    def finals(self) -> dict[int, float]:
        """Replicate → the reported metric."""
        return {key: run.final for key, run in self.runs.items()}

    def last_of_curves(self) -> list[float]:
        """The last evaluation on the validation data, of each replicate."""
        return [run.curve[-1] for run in self.runs.values()]

    def seconds_per_iteration(self) -> float:
        """Median over the replicates."""
        return statistics.median(run.seconds_per_iteration for run in self.runs.values())


@dataclass(frozen=True)
class ComparisonRow:
    """One method in the table.

    Attributes:
        final: the reported metric.
        difference: to the baseline, paired by replicate, with the interval of this comparison alone; None for the
            baseline itself.
        together: the same with an interval that holds for all comparisons of the table at once.
        halves: half → the difference in it, with its own interval.
        better: in how many replicates it is above the baseline.
        detectable: the difference that this many replicates would have found with a probability of 80 %.
        equal_seconds: on the validation data, this method's value when the baseline's training time is over, minus
            the baseline's last; None for the baseline itself, or where no speed was measured.
        to_reference: median iterations until the reference was reached; None: not in half of the runs.
        reached: in how many runs it was.
        seconds_per_iteration: median over the runs.
    """

    name: str
    label: str
    final: Estimate
    difference: Estimate | None
    together: Estimate | None
    better: int
    to_reference: float | None
    reached: int
    seconds_per_iteration: float
    halves: Mapping[str, Estimate] = field(default_factory=dict)
    detectable: float | None = None
    equal_seconds: Estimate | None = None

    def verdict(self) -> str:
        """ "better" or "worse" if the interval for all comparisons at once lies on one side of 0 and each half's own
        interval on the same side; else "unresolved"."""
        if self.together is None:
            return "baseline"
        said = self.together.verdict()
        halves = list(self.halves.values()) if len(self.halves) > 1 else []
        return said if all(half.verdict() == said for half in halves) else "unresolved"


def compare(
    methods: Sequence[MethodRuns], baseline: str, reference: float | None = None
) -> list[ComparisonRow]:
    """The table's rows, in the methods' order.

    Args:
        baseline: name of the one the others are compared with, in the replicates that both have.
        reference: value of the metric on the validation data whose first reaching is timed; None: the
            baseline's mean at its end.

    Raises:
        ConfigError: the baseline is none of the methods, a method shares no replicate with it, or a value is not a
            number.
    """
    base = next((method for method in methods if method.name == baseline), None)
    if base is None:
        raise ConfigError(
            f"the baseline {baseline!r} is none of the methods {', '.join(method.name for method in methods)}"
        )
    for method in methods:
        for key, value in method.finals().items():
            if value != value:
                raise ConfigError(
                    f"{method.label}, replicate {key}: the metric is not a number; has the data boxes?"
                )
        if not set(method.runs) & set(base.runs):
            raise ConfigError(f"{method.label} and {base.label} have no replicate in common")
    others = [method for method in methods if method is not base]
    differences = {one.name: paired_differences(one.finals(), base.finals()) for one in others}
    together = dict(zip(differences, simultaneous(list(differences.values()))))
    target = reference_value(base, reference)
    rows = []
    for method in methods:
        found = differences.get(method.name, {})
        reached = [iterations_to_reach(run.iterations, run.curve, target) for run in method.runs.values()]
        interval, detectable = together.get(method.name), None
        if interval is not None and interval.count > 1:
            detectable = detectable_difference(interval, statistics.stdev(found.values()))
        halves: dict[str, list[float]] = {}
        for key, value in found.items():
            halves.setdefault(method.runs[key].half, []).append(value)
        rows.append(
            ComparisonRow(
                method.name,
                method.label,
                final=estimate(list(method.finals().values())),
                difference=estimate(list(found.values())) if found else None,
                together=interval,
                better=sum(value > 0 for value in found.values()),
                to_reference=median_to_reach(reached),
                reached=sum(value is not None for value in reached),
                seconds_per_iteration=method.seconds_per_iteration(),
                halves={half: estimate(values) for half, values in sorted(halves.items())},
                detectable=detectable,
                equal_seconds=_at_equal_seconds(method, base) if found else None,
            )
        )
    return rows


def reference_value(baseline: MethodRuns, reference: float | None) -> float:
    """The given reference, or the baseline's mean over replicates at the end of training."""
    return statistics.fmean(baseline.last_of_curves()) if reference is None else reference


def _at_equal_seconds(method: MethodRuns, base: MethodRuns) -> Estimate | None:
    """Validation value, linear between evaluations, where the baseline's median time is used up, minus the baseline's
    last value. Before the first evaluation nothing is known: its value is taken for 0."""
    slower = method.seconds_per_iteration() / base.seconds_per_iteration()
    if not np.isfinite(slower):
        return None
    values = []
    for key in sorted(set(method.runs) & set(base.runs)):
        run, other = method.runs[key], base.runs[key]
        allowed = other.iterations[-1] / max(slower, 1e-12)
        values.append(float(np.interp(allowed, [0, *run.iterations], [0.0, *run.curve])) - other.curve[-1])
    return estimate(values)


def table_cells(rows: Sequence[ComparisonRow], metric: str, reference: float) -> list[list[str]]:
    """The table as text: the head, then a line per method."""
    head = ["method", metric, "minus baseline", "all at once", "verdict", "better in"]
    head += ["detectable", "at equal seconds", f"iterations to {reference:.1f} {metric}", "s / iteration"]
    body = [head]
    for row in rows:
        if row.difference is None or row.together is None:
            against = [_NONE, _NONE, "baseline", _NONE, _NONE, _NONE]
        else:
            together = row.together
            against = [
                row.difference.text("+.1f"),
                _NONE if together.half_width is None else f"± {together.half_width:.1f}",
                row.verdict(),
                f"{row.better} of {row.difference.count}",
                _NONE if row.detectable is None else f"{row.detectable:.1f}",
                _NONE if row.equal_seconds is None else row.equal_seconds.text("+.1f"),
            ]
        runs = f"{row.reached} of {row.final.count} runs"
        time = f"{row.to_reference:g} ({runs})" if row.to_reference is not None else f"not reached ({runs})"
        body.append([row.label, row.final.text(), *against, time, f"{row.seconds_per_iteration:.3f}"])
    return body


def comparison_markdown(rows: Sequence[ComparisonRow], metric: str, reference: float) -> str:
    """The table for people."""
    head, *body = table_cells(rows, metric, reference)
    aligned = ["left", "right", "right", "right", "left", *["right"] * 5]
    return tabulate(body, head, tablefmt="github", colalign=aligned, disable_numparse=True)


def comparison_csv(students: Mapping[str, Sequence[ComparisonRow]], metric: str) -> str:
    """The tables of all students for programs: one line per student and method, empty where there is nothing."""
    lines = []
    for student, rows in students.items():
        for row in rows:
            difference, together, seconds = row.difference, row.together, row.equal_seconds
            lines.append(
                {
                    "student": student,
                    "method": row.name,
                    "replicates": row.final.count,
                    metric: row.final.mean,
                    f"{metric}_half_width": row.final.half_width,
                    "difference": difference and difference.mean,
                    "difference_half_width": difference and difference.half_width,
                    "simultaneous_half_width": together and together.half_width,
                    "verdict": row.verdict(),
                    "better_replicates": None if difference is None else row.better,
                    "detectable": row.detectable,
                    "difference_at_equal_seconds": seconds and seconds.mean,
                    "difference_at_equal_seconds_half_width": seconds and seconds.half_width,
                    "iterations_to_reference": row.to_reference,
                    "replicates_reaching_reference": row.reached,
                    "seconds_per_iteration": row.seconds_per_iteration,
                }
            )
            if len(row.halves) > 1:
                lines[-1].update((f"difference_{half}", found.mean) for half, found in row.halves.items())
    text = io.StringIO()
    keys = list(dict.fromkeys(key for line in lines for key in line))
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def verdicts(rows: Sequence[ComparisonRow], metric: str) -> list[str]:
    """One sentence per method about its difference to the baseline."""
    base = next(row for row in rows if row.difference is None)
    sentences = []
    for row in rows:
        together = row.together
        if together is None:
            continue
        said = f"{row.label} minus {base.label}: {together.mean:+.1f} {metric}"
        if together.low is None or together.high is None:
            sentences.append(f"{said}, unresolved: one pair of runs cannot tell a gain from chance.")
            continue
        span = f"the interval from {together.low:+.1f} to {together.high:+.1f}"
        if together.verdict() == "unresolved":
            sentences.append(f"{said}, unresolved: {span} includes 0.")
        elif row.verdict() == "unresolved":
            halves = "; ".join(f"{half} {found.text('+.1f')}" for half, found in row.halves.items())
            sentences.append(f"{said}, unresolved: {span} excludes 0, but not in each half ({halves}).")
        else:
            also = ", and so does each half's" if len(row.halves) > 1 else ""
            sentences.append(f"{said}, {row.verdict()}: {span} excludes 0{also}.")
    return sentences


def power_sentence(rows: Sequence[ComparisonRow], metric: str) -> str:
    """Which differences this many replicates could have seen; empty where nothing is compared."""
    found = [row.detectable for row in rows if row.detectable is not None]
    counts = {row.difference.count for row in rows if row.difference is not None}
    if not found:
        return ""
    span = f"{min(found):.1f}" if len(found) == 1 else f"{min(found):.1f} to {max(found):.1f}"
    return (
        f"{' or '.join(map(str, sorted(counts)))} replicates find a true difference of {span} {metric}, depending on "
        f"the method, with a probability of 80 % (all comparisons at once); smaller ones are mostly missed."
    )
