"""Means, paired differences and their intervals against SciPy and by hand; the comparison's table."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from scipy import stats

from mokd_det.errors import ConfigError
from mokd_det.evaluation.method_comparison import (
    MethodRuns,
    RunResult,
    compare,
    comparison_csv,
    comparison_markdown,
    reference_value,
    verdicts,
)
from mokd_det.evaluation.seed_statistics import (
    Estimate,
    estimate,
    iterations_to_reach,
    median_to_reach,
    paired_difference,
)


def test_interval_by_hand():
    # mean 2, standard deviation 1, t(0.975; 2) = 4.302653 from any printed table
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.count == 3
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert (found.low, found.high) == (
        pytest.approx(2 - 2.484138, abs=1e-6),
        pytest.approx(2 + 2.484138, abs=1e-6),
    )


@pytest.mark.parametrize("count", [2, 3, 5, 12])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_equal_scipys(count, level):
    generator = np.random.default_rng(count)
    base = {seed: float(v) for seed, v in enumerate(generator.normal(40, 2, count))}
    other = {seed: v + float(generator.normal(1, 1)) for seed, v in base.items()}
    found = estimate(list(other.values()), level)
    expected = stats.ttest_1samp(list(other.values()), 0.0).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    found = paired_difference(other, base, level)
    expected = stats.ttest_rel(list(other.values()), list(base.values())).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_95_percent_of_the_intervals_cover_the_truth():
    samples = np.random.default_rng(0).normal(7.0, 3.0, (2000, 3))
    intervals = [estimate(sample.tolist()) for sample in samples]
    covered = sum(found.low <= 7.0 <= found.high for found in intervals) / len(intervals)
    assert 0.935 < covered < 0.965


def test_pairs_are_matched_by_seed_not_by_position():
    found = paired_difference({5: 11.0, 3: 20.0}, {3: 10.0, 5: 1.0})
    assert found == Estimate(10.0, 0.0, 2)
    with pytest.raises(ValueError, match="equal seeds"):
        paired_difference({0: 1.0}, {1: 1.0})


@pytest.mark.parametrize(
    ("mean", "half_width", "verdict"),
    [
        (2.0, 1.9, "better"),
        (-2.0, 1.9, "worse"),
        (2.0, 2.0, "unresolved"),
        (-2.0, 2.1, "unresolved"),
        (0.0, 0.0, "unresolved"),
        (9.0, None, "unresolved"),
    ],
)
def test_an_interval_that_includes_0_is_unresolved(mean, half_width, verdict):
    assert Estimate(mean, half_width, 3).verdict() == verdict


def test_one_value_has_no_interval_and_none_or_nan_no_mean():
    assert estimate([3.0]) == Estimate(3.0, None, 1)
    for values in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="finite values"):
            estimate(values)


def test_iterations_to_reach():
    assert iterations_to_reach([10, 20, 30], [1.0, 5.0, 4.0], 5.0) == 20
    assert iterations_to_reach([10, 20, 30], [1.0, 4.9, 4.0], 5.0) is None
    assert median_to_reach([30, 10, None]) == 30
    assert median_to_reach([30, 10]) == 20
    assert median_to_reach([10, None, None]) is None
    assert median_to_reach([10, None]) is None
    with pytest.raises(ValueError):
        median_to_reach([])


def method(name: str, finals: list[float], curves: list[list[float]]) -> MethodRuns:
    runs = {
        seed: RunResult(final, [100, 200], curve, 0.1 * (seed + 1))
        for seed, (final, curve) in enumerate(zip(finals, curves))
    }
    return MethodRuns(name, name.upper(), runs)


@pytest.fixture
def methods():
    return [
        method("base", [30.0, 32.0, 31.0], [[10, 20], [10, 22], [10, 21]]),
        method("up", [40.0, 41.0, 42.0], [[21, 30], [22, 30], [10, 30]]),
        method("same", [33.0, 29.0, 34.0], [[5, 19], [5, 21], [5, 18]]),
    ]


def cells(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]


def test_the_markdown_table(methods):
    rows = compare(methods, "base")
    assert reference_value(methods[0], None) == 21.0
    table = cells(comparison_markdown(rows, "AP", 21.0))
    assert table[0][1:6] == ["AP", "minus baseline", "verdict", "better seeds", "iterations to 21.0 AP"]
    # standard deviation 1: half width 4.3027 / √3
    assert table[2] == ["BASE", "31.0 ± 2.5", "baseline", "–", "–", "200 (2 of 3 seeds)", "0.200"]
    # differences 10, 9, 11
    assert table[3] == ["UP", "41.0 ± 2.5", "+10.0 ± 2.5", "better", "3 of 3", "100 (3 of 3 seeds)", "0.200"]
    # differences 3, -3, 3: mean 1, standard deviation 2 √3, half width 8.6053
    assert table[4][2:6] == ["+1.0 ± 8.6", "unresolved", "2 of 3", "not reached (1 of 3 seeds)"]
    assert len(table) == 5


def test_the_reference_can_be_given(methods):
    rows = compare(methods, "base", 30.0)
    assert [row.to_reference for row in rows] == [None, 200, None]
    assert [row.reached for row in rows] == [0, 3, 0]


def test_the_verdicts_do_not_flatter(methods):
    better, same = verdicts(compare(methods, "base"), "AP")
    assert better == "UP minus BASE: +10.0 AP, better: the interval from +7.5 to +12.5 excludes 0."
    assert same == "SAME minus BASE: +1.0 AP, unresolved: the interval from -7.6 to +9.6 includes 0."
    single = [MethodRuns(m.name, m.label, {0: m.runs[0]}) for m in methods]
    rows = compare(single, "base")
    assert all("unresolved: one pair of runs cannot tell" in sentence for sentence in verdicts(rows, "AP"))
    assert cells(comparison_markdown(rows, "AP", 20.0))[3][1:4] == ["40.0", "+10.0", "unresolved"]


def test_the_csv_has_the_same_numbers_unrounded(methods):
    text = comparison_csv({"small": compare(methods, "base")}, "AP")
    base, up, same = csv.DictReader(io.StringIO(text))
    assert base["student"] == "small" and base["verdict"] == "baseline" and base["difference"] == ""
    assert float(up["AP_half_width"]) == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert float(up["difference"]) == 10.0 and up["better_seeds"] == "3"
    assert same["iterations_to_reference"] == "" and same["seeds_reaching_reference"] == "1"


def test_mistakes_are_named(methods):
    with pytest.raises(ConfigError, match="'vkd' is none of the methods base, up, same"):
        compare(methods, "vkd")
    empty = method("empty", [30.0, math.nan, 31.0], [[1, 2]] * 3)
    with pytest.raises(ConfigError, match="EMPTY, seed 1: the metric is not a number"):
        compare([methods[0], empty], "base")
