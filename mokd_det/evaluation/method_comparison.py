"""Methods against a baseline over equal seeds: the numbers of one table, and the table as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from mokd_det.errors import ConfigError
from mokd_det.evaluation.seed_statistics import (
    Estimate,
    estimate,
    iterations_to_reach,
    median_to_reach,
    paired_difference,
)

__all__ = [
    "ComparisonRow",
    "MethodRuns",
    "RunResult",
    "compare",
    "comparison_csv",
    "comparison_markdown",
    "verdicts",
]

_NONE = "–"


@dataclass(frozen=True)
class RunResult:
    """One training.

    Attributes:
        final: the reported metric, in percent.
        iterations: of the evaluations during the training, ascending.
        curve: the metric at these, on the validation data.
        seconds_per_iteration: median of the training steps.
    """

    final: float
    iterations: Sequence[int]
    curve: Sequence[float]
    seconds_per_iteration: float


@dataclass(frozen=True)
class MethodRuns:
    """All seeds of one method.

    Attributes:
        name: short and unique.
        label: for people.
        runs: seed → result.
    """

    name: str
    label: str
    runs: Mapping[int, RunResult]

    def finals(self) -> dict[int, float]:
        """Seed → the reported metric."""
        return {seed: run.final for seed, run in self.runs.items()}

    def last_of_curves(self) -> list[float]:
        """The last evaluation on the validation data, of each seed."""
        return [run.curve[-1] for run in self.runs.values()]


@dataclass(frozen=True)
class ComparisonRow:
    """One method in the table.

    Attributes:
        final: the reported metric.
        difference: to the baseline, paired by seed; None for the baseline itself.
        better_seeds: with how many seeds it is above the baseline.
        to_reference: median iterations until the reference was reached; None: not in half of the runs.
        reached: in how many runs it was.
        seconds_per_iteration: median over the runs.
    """

    name: str
    label: str
    final: Estimate
    difference: Estimate | None
    better_seeds: int
    to_reference: float | None
    reached: int
    seconds_per_iteration: float


def compare(
    methods: Sequence[MethodRuns], baseline: str, reference: float | None = None
) -> list[ComparisonRow]:
    """The table's rows, in the methods' order.

    Args:
        methods: each with the same seeds.
        baseline: name of the one the others are compared with.
        reference: value of the metric on the validation data whose first reaching is timed; None: the
            baseline's mean at its end.

    Raises:
        ConfigError: the baseline is none of the methods, or a value is not a number.
    """
    base = next((method for method in methods if method.name == baseline), None)
    if base is None:
        raise ConfigError(
            f"the baseline {baseline!r} is none of the methods {', '.join(method.name for method in methods)}"
        )
    target = reference_value(base, reference)
    rows = []
    for method in methods:
        finals = method.finals()
        for seed, value in finals.items():
            if value != value:
                raise ConfigError(
                    f"{method.label}, seed {seed}: the metric is not a number; has the data boxes?"
                )
        reached = [iterations_to_reach(run.iterations, run.curve, target) for run in method.runs.values()]
        rows.append(
            ComparisonRow(
                method.name,
                method.label,
                estimate(list(finals.values())),
                None if method is base else paired_difference(finals, base.finals()),
                sum(value > base.runs[seed].final for seed, value in finals.items()),
                median_to_reach(reached),
                sum(value is not None for value in reached),
                statistics.median(run.seconds_per_iteration for run in method.runs.values()),
            )
        )
    return rows


def reference_value(baseline: MethodRuns, reference: float | None) -> float:
    """The given reference, or the baseline's mean over seeds at the end of training."""
    return statistics.fmean(baseline.last_of_curves()) if reference is None else reference


def comparison_markdown(rows: Sequence[ComparisonRow], metric: str, reference: float) -> str:
    """The table for people."""
    head = [
        "method",
        metric,
        "minus baseline",
        "verdict",
        "better seeds",
        f"iterations to {reference:.1f} {metric}",
        "s / iteration",
    ]
    body = []
    for row in rows:
        difference = row.difference
        if difference is None:
            against = ["baseline", _NONE, _NONE]
        else:
            against = [
                _with_interval(difference, "+.1f"),
                difference.verdict(),
                f"{row.better_seeds} of {difference.count}",
            ]
        seeds = f"{row.reached} of {row.final.count} seeds"
        time = f"{row.to_reference:g} ({seeds})" if row.to_reference is not None else f"not reached ({seeds})"
        body.append(
            [row.label, _with_interval(row.final, ".1f"), *against, time, f"{row.seconds_per_iteration:.3f}"]
        )
    aligned = ["left", "right", "right", "left", "right", "right", "right"]
    return tabulate(body, head, tablefmt="github", colalign=aligned, disable_numparse=True)


def comparison_csv(students: Mapping[str, Sequence[ComparisonRow]], metric: str) -> str:
    """The tables of all students for programs: one line per student and method, empty where there is
    nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "student",
            "method",
            "seeds",
            metric,
            f"{metric}_half_width",
            "difference",
            "difference_half_width",
            "verdict",
            "better_seeds",
            "iterations_to_reference",
            "seeds_reaching_reference",
            "seconds_per_iteration",
        ]
    )
    for student, rows in students.items():
        for row in rows:
            difference = row.difference
            writer.writerow(
                [
                    student,
                    row.name,
                    row.final.count,
                    row.final.mean,
                    row.final.half_width,
                    *(
                        (None, None, "baseline", None)
                        if difference is None
                        else (
                            difference.mean,
                            difference.half_width,
                            difference.verdict(),
                            row.better_seeds,
                        )
                    ),
                    row.to_reference,
                    row.reached,
                    row.seconds_per_iteration,
                ]
            )
    return text.getvalue()


def verdicts(rows: Sequence[ComparisonRow], metric: str) -> list[str]:
    """One sentence per method about its difference to the baseline."""
    base = next(row for row in rows if row.difference is None)
    sentences = []
    for row in rows:
        difference = row.difference
        if difference is None:
            continue
        said = f"{row.label} minus {base.label}: {difference.mean:+.1f} {metric}"
        if difference.low is None or difference.high is None:
            sentences.append(f"{said}, unresolved: one pair of runs cannot tell a gain from chance.")
        elif difference.verdict() == "unresolved":
            sentences.append(
                f"{said}, unresolved: the interval from {difference.low:+.1f} to {difference.high:+.1f} "
                "includes 0."
            )
        else:
            sentences.append(
                f"{said}, {difference.verdict()}: the interval from {difference.low:+.1f} to "
                f"{difference.high:+.1f} excludes 0."
            )
    return sentences


def _with_interval(value: Estimate, form: str) -> str:
    mean = format(value.mean, form)
    return mean if value.half_width is None else f"{mean} ± {value.half_width:.1f}"
