"""The progress printer, with a clock that the test moves."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from mokd_det.progress import format_duration, progress


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(
    count: int, seconds_each: float, total: int | None, sized: bool = True
) -> tuple[list[int], list[str]]:
    """Iterate over ``count`` numbers; what came out and what was printed."""
    clock, stream = Clock(), io.StringIO()
    source = range(count) if sized else iter(range(count))
    out = []
    for item in progress(source, total, "images", every=5.0, quiet=3.0, stream=stream, clock=clock):
        out.append(item)
        clock.now += seconds_each
    return out, stream.getvalue().splitlines()


def test_short_work_prints_nothing() -> None:
    items, lines = run(29, 0.1, None)
    assert items == list(range(29))
    assert lines == []


def test_long_work_tells_share_rate_and_remaining_time() -> None:
    items, lines = run(80, 0.25, None)
    assert items == list(range(80))
    assert lines == [
        "images: 12 of 80 (15%), 4 per second, about 17 s left",
        "images: 32 of 80 (40%), 4 per second, about 12 s left",
        "images: 52 of 80 (65%), 4 per second, about 7 s left",
        "images: 72 of 80 (90%), 4 per second, about 2 s left",
        "images: 80 in 20 s",
    ]


def test_slow_items_are_timed_one_by_one() -> None:
    assert run(3, 10.0, None)[1] == [
        "images: 1 of 3 (33%), 10 s each, about 20 s left",
        "images: 2 of 3 (67%), 10 s each, about 10 s left",
        "images: 3 in 30 s",
    ]


def test_unknown_length_has_no_share() -> None:
    _, lines = run(5, 2.0, None, sized=False)
    assert lines == [
        "images: 2, 2 s each, 4 s so far",
        "images: 5, 2 s each, 10 s so far",
        "images: 5 in 10 s",
    ]


def test_a_total_that_was_too_small_claims_no_share() -> None:
    _, lines = run(6, 2.0, 3)
    assert lines[1] == "images: 5, 2 s each, 10 s so far"


def test_it_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    for _ in progress(range(2), what="steps", clock=clock):
        clock.now += 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "steps: 1 of 2 (50%), 4 s each, about 4 s left\nsteps: 2 in 8 s\n"


def test_leaving_early_closes_the_source() -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(True)

    clock, stream = Clock(), io.StringIO()
    items = progress(source(), stream=stream, clock=clock)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert closed == [True]
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3600, "1 h 00 min"),
        (12030, "3 h 20 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
