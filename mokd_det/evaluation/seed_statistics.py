"""What a few seeds allow to say: means and paired differences with t intervals, and iterations to a target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

__all__ = ["Estimate", "estimate", "iterations_to_reach", "median_to_reach", "paired_difference"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its confidence interval.

    Attributes:
        mean: of the values.
        half_width: of the interval; None with a single value, which tells nothing about its spread.
        count: how many values.
    """

    mean: float
    half_width: float | None
    count: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width is None else self.mean + self.half_width

    def verdict(self) -> str:
        """What a difference is, more being better: "better" or "worse" if the interval lies on one side of
        0, else "unresolved"; so is a single pair."""
        if self.low is None or self.high is None or self.low <= 0.0 <= self.high:
            return "unresolved"
        return "better" if self.low > 0.0 else "worse"


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean and interval mean ± t · s / √n, t with n - 1 degrees of freedom.

    The interval takes the values for independent and roughly normal.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"an estimate needs finite values, got {list(values)}")
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Estimate(mean, None, 1)
    quantile = float(student_t.ppf(0.5 + level / 2, count - 1))
    return Estimate(mean, quantile * statistics.stdev(values) / math.sqrt(count), count)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95
) -> Estimate:
    """Estimate of values - baseline, seed by seed.

    Runs that share a seed share their data order and first weights; what these do to both alike cancels.

    Args:
        values: seed → value.
        baseline: the same seeds → value.

    Raises:
        ValueError: the seeds differ, or a value is not finite.
    """
    if set(values) != set(baseline):
        raise ValueError(f"pairs need equal seeds, got {sorted(values)} and {sorted(baseline)}")
    return estimate([values[seed] - baseline[seed] for seed in sorted(values)], level)


def iterations_to_reach(iterations: Sequence[int], values: Sequence[float], reference: float) -> int | None:
    """The first evaluated iteration whose value is at least ``reference``; None: none is.

    Nothing is interpolated: the answer is as fine as the evaluations are.
    """
    return next((int(iteration) for iteration, value in zip(iterations, values) if value >= reference), None)


def median_to_reach(reached: Sequence[int | None]) -> float | None:
    """Median of :func:`iterations_to_reach` over seeds, a run that never did counting as infinitely long.

    Unlike a mean of those that arrived, it is not flattered by leaving the slow ones out. None: half of the
    runs or more never did.
    """
    if not reached:
        raise ValueError("the median needs a run")
    median = statistics.median(math.inf if value is None else value for value in reached)
    return median if math.isfinite(median) else None
