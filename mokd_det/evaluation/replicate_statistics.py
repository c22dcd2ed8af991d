"""What a few replicates allow to say: means and paired differences with t intervals, each by itself or all of a table
at once; which difference they could have detected; iterations to a target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm
from scipy.stats import t as student_t

__all__ = [
    "Estimate",
    "detectable_difference",
    "estimate",
    "iterations_to_reach",
    "median_to_reach",
    "paired_differences",
    "simultaneous",
]

_DRAWS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` replicates and half of its confidence interval; None with a single value, which tells
    nothing about its spread."""

    mean: float
    half_width: float | None
    count: int

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else self.mean + self.half_width

    def text(self, form: str = ".1f") -> str:
        """The mean, in the given format, and half of the interval."""
        mean = format(self.mean, form)
        return mean if self.half_width is None else f"{mean} ± {self.half_width:.1f}"

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


def paired_differences(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[int, float]:
    """Values - baseline of the replicates that both have, in ascending order.

    What a replicate (its teacher, scenes, first weights, order) does to both alike cancels.
    """
    return {key: values[key] - baseline[key] for key in sorted(set(values) & set(baseline))}


def simultaneous(
    differences: Sequence[Mapping[int, float]], level: float = 0.95, seed: int = 0
) -> list[Estimate]:
    """Intervals of several mean differences that all hold at once with the probability ``level``.

    mean_j ± c · s_j / √n, with c the quantile of max_j |t_j| when no difference is real. Its distribution is drawn from
    normal replicates with the differences' own correlations (the comparisons share their baseline): the max-t method.
    c is at most Bonferroni's, which is also taken where the comparisons have unlike replicates.

    Args:
        differences: of each comparison, replicate → difference.
        level: of all intervals together.
        seed: of the drawing.

    Raises:
        ValueError: a comparison without finite values.
    """
    each = [estimate(list(values.values()), level) for values in differences]
    keys = [sorted(values) for values in differences]
    share = (1 - level) / (2 * max(1, len(each)))
    bonferroni = [float(student_t.ppf(1 - share, max(1, one.count - 1))) for one in each]
    limit = math.inf
    if len(each) > 1 and len(keys[0]) > 1 and all(other == keys[0] for other in keys):
        table = np.array([[values[key] for values in differences] for key in keys[0]])
        limit = _max_t_quantile(table, level, seed)

    def widened(one: Estimate, critical: float, values: Mapping[int, float]) -> Estimate:
        if one.count == 1:
            return one
        half = min(critical, limit) * statistics.stdev(values.values()) / math.sqrt(one.count)
        return Estimate(one.mean, half, one.count)

    return list(map(widened, each, bonferroni, differences))


def _max_t_quantile(table: np.ndarray, level: float, seed: int) -> float:
    """Quantile of the largest |t| of J means over normal replicates with the correlations of ``table`` (n, J)."""
    centred = table - table.mean(axis=0)
    norms = np.linalg.norm(centred, axis=0)
    # A comparison without any spread is correlated with nothing.
    directions = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    correlation = directions.T @ directions
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    generator, largest = np.random.default_rng(seed), []
    for _ in range(10):
        drawn = generator.standard_normal((_DRAWS // 10, *table.shape)) @ root.T
        t = drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / math.sqrt(len(table)))
        largest.append(np.abs(t).max(axis=1))
    return float(np.quantile(np.concatenate(largest), level))


def detectable_difference(interval: Estimate, spread: float, power: float = 0.8) -> float | None:
    """The true difference at which so many replicates find an interval without 0 with the probability ``power``.

    Args:
        interval: of the mean difference; its width says which t is needed.
        spread: standard deviation of the differences.
        power: probability.

    Returns:
        In the values' unit; None without an interval or without spread.
    """
    if interval.half_width is None or spread <= 0:
        return None
    scale, degrees = spread / math.sqrt(interval.count), interval.count - 1
    critical = interval.half_width / scale

    # The power of the t test, as a mean over the estimated spread (SciPy's non-central t fails far from 0).
    estimated = np.sqrt(chi2.ppf((np.arange(2000) + 0.5) / 2000, degrees) / degrees)

    def missing(shift: float) -> float:
        found = norm.cdf(shift - critical * estimated) + norm.cdf(-shift - critical * estimated)
        return float(found.mean()) - power

    return scale * float(brentq(missing, 0.0, 10.0 * critical + 10.0))


def iterations_to_reach(iterations: Sequence[int], values: Sequence[float], reference: float) -> int | None:
    """The first evaluated iteration whose value is at least ``reference``; None: none is.

    Nothing is interpolated: the answer is as fine as the evaluations are.
    """
    return next((int(iteration) for iteration, value in zip(iterations, values) if value >= reference), None)


def median_to_reach(reached: Sequence[int | None]) -> float | None:
    """Median of :func:`iterations_to_reach` over replicates, a run that never did counting as infinitely long.

    Unlike a mean of those that arrived, it is not flattered by leaving the slow ones out. None: half of the
    runs or more never did.
    """
    if not reached:
        raise ValueError("the median needs a run")
    median = statistics.median(math.inf if value is None else value for value in reached)
    return median if math.isfinite(median) else None
