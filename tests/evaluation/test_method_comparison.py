"""Means, paired differences and their intervals against SciPy and by hand; the comparison's table."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

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
    power_sentence,
    reference_value,
    verdicts,
)
from mokd_det.evaluation.replicate_statistics import (
    Estimate,
    detectable_difference,
    estimate,
    iterations_to_reach,
    median_to_reach,
    paired_differences,
    simultaneous,
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
    found = estimate(list(paired_differences(other, base).values()), level)
    expected = stats.ttest_rel(list(other.values()), list(base.values())).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_95_percent_of_the_intervals_cover_the_truth():
    samples = np.random.default_rng(0).normal(7.0, 3.0, (2000, 3))
    intervals = [estimate(sample.tolist()) for sample in samples]
    covered = sum(found.low <= 7.0 <= found.high for found in intervals) / len(intervals)
    assert 0.935 < covered < 0.965


def test_pairs_are_matched_by_replicate_not_by_position():
    assert paired_differences({5: 11.0, 3: 20.0, 7: 1.0}, {3: 10.0, 5: 1.0}) == {3: 10.0, 5: 10.0}


def replicates(values):
    return {key: float(value) for key, value in enumerate(values)}


def test_one_comparison_needs_no_wider_interval():
    values = replicates([1.0, 2.0, 3.0])
    assert simultaneous([values])[0].half_width == pytest.approx(estimate([1.0, 2.0, 3.0]).half_width)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_all_intervals_hold_at_once(correlation):
    """At 8 replicates and 5 comparisons 95 % of the tables have no interval without 0; each by itself: fewer."""
    generator = np.random.default_rng(3)
    root = np.linalg.cholesky(np.full((5, 5), correlation) + (1 - correlation) * np.eye(5))
    at_once = alone = 0
    for table in generator.standard_normal((60, 8, 5)) @ root.T:
        columns = [replicates(column) for column in table.T]
        at_once += all(one.verdict() == "unresolved" for one in simultaneous(columns))
        alone += all(estimate(list(column.values())).verdict() == "unresolved" for column in columns)
    assert at_once / 60 >= 0.88 and alone / 60 < 0.88


def test_simultaneous_intervals_are_between_one_and_bonferroni():
    generator = np.random.default_rng(1)
    shared = generator.standard_normal(8)
    columns = [replicates(shared + 0.3 * generator.standard_normal(8)) for _ in range(6)]
    for one, column in zip(simultaneous(columns), columns):
        values = list(column.values())
        spread = np.std(values, ddof=1) / math.sqrt(8)
        assert estimate(values).half_width < one.half_width < stats.t.ppf(1 - 0.025 / 6, 7) * spread
    # Of unlike replicates it is Bonferroni's.
    del columns[0][3]
    expected = stats.t.ppf(1 - 0.025 / 6, 7) * np.std(list(columns[1].values()), ddof=1) / math.sqrt(8)
    assert simultaneous(columns)[1].half_width == pytest.approx(expected)


def test_the_detectable_difference_is_found_in_80_percent():
    spread, count = 2.0, 6
    interval = Estimate(0.0, stats.t.ppf(0.975, count - 1) * spread / math.sqrt(count), count)
    shift = detectable_difference(interval, spread)
    samples = np.random.default_rng(0).normal(shift, spread, (4000, count))
    found = np.mean(stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=0.025)
    assert detectable_difference(Estimate(1.0, None, 1), spread) is None


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


def method(name: str, finals: list[float], curves: list[list[float]], seconds: float = 0.1) -> MethodRuns:
    runs = {
        key: RunResult(final, [100, 200], curve, seconds, "limited" if key % 2 else "full")
        for key, (final, curve) in enumerate(zip(finals, curves))
    }
    return MethodRuns(name, name.upper(), runs)


@pytest.fixture
def methods():
    return [
        method("base", [30.0, 32.0, 31.0, 33.0], [[10, 20], [10, 22], [10, 21], [10, 21]]),
        method("up", [40.0, 41.0, 41.0, 44.0], [[21, 30], [22, 30], [10, 30], [20, 30]], 0.2),
        method("same", [33.0, 29.0, 34.0, 33.0], [[5, 19], [5, 21], [5, 18], [5, 19]]),
    ]


def cells(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]


def test_the_markdown_table(methods):
    rows = compare(methods, "base")
    assert reference_value(methods[0], None) == 21.0
    table = cells(comparison_markdown(rows, "AP", 21.0))
    assert table[0][1:6] == ["AP", "minus baseline", "all at once", "verdict", "better in"]
    assert table[0][6:] == ["detectable", "at equal seconds", "iterations to 21.0 AP", "s / iteration"]
    # standard deviation √(5/3): half width 3.18245 · 1.29099 / 2
    assert table[2] == [
        "BASE",
        "31.5 ± 2.1",
        "–",
        "–",
        "baseline",
        "–",
        "–",
        "–",
        "200 (3 of 4 runs)",
        "0.100",
    ]
    # differences 10, 9, 10, 11: standard deviation √(2/3), half width 3.18245 · 0.81650 / 2 = 1.299
    assert table[3][1:3] == ["41.5 ± 2.8", "+10.0 ± 1.3"]
    # At half the iterations, 100, it has 21, 22, 10, 20: against 20, 22, 21, 21.
    assert table[3][7].startswith("-2.8 ±") and table[3][8:] == ["150 (4 of 4 runs)", "0.200"]
    assert table[4][2:5:2] == ["+0.8 ± 4.6", "unresolved"] and table[4][8] == "not reached (1 of 4 runs)"
    wide = float(table[3][3].split()[1])
    assert 1.3 < wide < 1.9


def test_a_verdict_must_hold_in_both_halves():
    finals = [50.0 + key for key in range(8)]
    base = method("base", finals, [[1, 2]] * 8)
    noise = [0.1, -0.1, 0.2, -0.2, 0.0, 0.1, -0.1, 0.0]
    both = method("both", [f + 3 + n for f, n in zip(finals, noise)], [[1, 2]] * 8)
    # In the full half + 4 ± 0.2, in the limited one + 0.5 with a spread of 1.
    shift = [4.0, 1.5, 4.2, -0.5, 3.8, 1.5, 4.0, -0.5]
    one = method("one", [f + s for f, s in zip(finals, shift)], [[1, 2]] * 8)
    rows = compare([base, both, one], "base")
    assert [row.verdict() for row in rows] == ["baseline", "better", "unresolved"]
    assert rows[2].together.verdict() == "better"
    assert rows[2].halves["limited"].mean == pytest.approx(0.5)
    said = verdicts(rows, "AP")
    assert said[0].endswith("excludes 0, and so does each half's.")
    assert "excludes 0, but not in each half (full +4.0 ± 0.3; limited +0.5 ±" in said[1]
    # Where nothing is limited there is one half only, and the whole decides.
    whole = {key: replace(run, half="full") for key, run in one.runs.items()}
    every = MethodRuns("base", "BASE", {key: replace(run, half="full") for key, run in base.runs.items()})
    assert compare([every, MethodRuns("one", "ONE", whole)], "base")[1].verdict() == "better"


def test_the_power_is_told(methods):
    assert "4 replicates find a true difference of" in power_sentence(compare(methods, "base"), "AP")
    assert power_sentence(compare(methods[:1], "base"), "AP") == ""


def test_the_reference_can_be_given(methods):
    rows = compare(methods, "base", 30.0)
    assert [row.to_reference for row in rows] == [None, 200, None]
    assert [row.reached for row in rows] == [0, 4, 0]


def test_the_verdicts_do_not_flatter(methods):
    up, same = verdicts(compare(methods, "base"), "AP")
    # Two replicates in each half: 10 and 10 in the full one, 9 and 11 in the limited one.
    assert "unresolved: the interval from +8" in up and "limited +10.0 ± 12.7" in up
    assert (
        same.startswith("SAME minus BASE: +0.8 AP, unresolved: the interval from -") and "includes 0" in same
    )
    single = [MethodRuns(m.name, m.label, {0: m.runs[0]}) for m in methods]
    rows = compare(single, "base")
    assert all("unresolved: one pair of runs cannot tell" in sentence for sentence in verdicts(rows, "AP"))
    assert cells(comparison_markdown(rows, "AP", 20.0))[3][1:5] == ["40.0", "+10.0", "–", "unresolved"]


def test_the_csv_has_the_same_numbers_unrounded(methods):
    text = comparison_csv({"small": compare(methods, "base")}, "AP")
    base, up, same = csv.DictReader(io.StringIO(text))
    assert base["student"] == "small" and base["verdict"] == "baseline" and base["difference"] == ""
    assert float(up["difference_half_width"]) == pytest.approx(3.182446 * math.sqrt(2 / 3) / 2, abs=1e-6)
    assert float(up["difference"]) == 10.0 and up["better_replicates"] == "4"
    assert float(up["difference_limited"]) == 10.0
    assert same["iterations_to_reference"] == "" and same["replicates_reaching_reference"] == "1"


def test_mistakes_are_named(methods):
    with pytest.raises(ConfigError, match="'vkd' is none of the methods base, up, same"):
        compare(methods, "vkd")
    empty = method("empty", [30.0, math.nan, 31.0], [[1, 2]] * 3)
    with pytest.raises(ConfigError, match="EMPTY, replicate 1: the metric is not a number"):
        compare([methods[0], empty], "base")
    other = MethodRuns("other", "OTHER", {9: methods[1].runs[0]})
    with pytest.raises(ConfigError, match="OTHER and BASE have no replicate in common"):
        compare([methods[0], other], "base")
