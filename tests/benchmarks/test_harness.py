"""The harness of the benchmarks: order, clocks, figures and records, by a clock that the test turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch


class Clocks:
    """Wall and processor clock that stand still until a call moves them."""

    def __init__(self) -> None:
        self.wall = self.cpu = 100.0
        self.called: list[str] = []

    def call(self, name: str, *seconds: tuple[float, float]) -> Callable[[], None]:
        """A callable whose n-th call takes the n-th (wall, cpu) seconds; the last ones from then on."""
        left = list(seconds)

        def run() -> None:
            wall, cpu = left.pop(0) if len(left) > 1 else left[0]
            self.wall, self.cpu = self.wall + wall, self.cpu + cpu
            self.called.append(name)

        return run


@pytest.fixture
def harness(benchmark_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # Events of a GPU cannot be turned by hand.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return benchmark_module("harness")


@pytest.fixture
def clocks(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    fake = SimpleNamespace(perf_counter=lambda: made.wall, process_time=lambda: made.cpu)
    monkeypatch.setattr(harness, "time", fake)
    return made


def test_callables_take_turns_and_the_first_to_go_changes(harness: ModuleType, clocks: Clocks) -> None:
    calls = {name: clocks.call(name, (1, 1)) for name in "abc"}
    harness.run(calls, rounds=3, warmup=1, progress=False)
    assert "".join(clocks.called) == "abcbcacababc"


def test_warm_up_does_not_count(harness: ModuleType, clocks: Clocks) -> None:
    measured = harness.run(
        {"only": clocks.call("only", (50, 40), (60, 40), (1, 0.5), (3, 2), (2, 1))}, rounds=3, warmup=2
    )
    assert measured.seconds("only") == harness.Spread(2, 1, 3)
    assert measured.seconds("only", "cpu") == harness.Spread(1, 0.5, 2)


def test_ratios_are_taken_within_a_round(harness: ModuleType, clocks: Clocks) -> None:
    plain = clocks.call("plain", (1, 1), (10, 1), (2, 1))
    ours = clocks.call("ours", (2, 3), (5, 3), (6, 3))
    measured = harness.run({"plain": plain, "ours": ours}, rounds=3, warmup=0, baseline="plain")
    assert measured.ratio("ours") == harness.Spread(2, 0.5, 3)
    assert measured.ratio("plain") == harness.Spread(1, 1, 1)
    # The ratio of the medians would be another: 5 / 2.
    assert measured.seconds("ours").median / measured.seconds("plain").median == 2.5
    both = measured.derived(lambda seconds: seconds["ours"] / (seconds["plain"] + seconds["ours"]))
    assert both == harness.Spread(2 / 3, 1 / 3, 3 / 4)


def test_clock_of_the_processor(harness: ModuleType, clocks: Clocks) -> None:
    calls = {"plain": clocks.call("plain", (9, 2)), "ours": clocks.call("ours", (1, 3))}
    measured = harness.run(calls, rounds=1, warmup=0, baseline="plain", clock="cpu")
    assert measured.ratio("ours").median == 1.5
    assert measured.seconds("ours").median == 3


def test_steps_that_differ_by_design_are_averaged(harness: ModuleType, clocks: Clocks) -> None:
    calls = {
        "plain": clocks.call("plain", (1, 1)),
        "tenth": clocks.call("tenth", (1, 1), (1, 1), (4, 1)),
    }
    measured = harness.run(calls, rounds=3, warmup=0, baseline="plain", mean=["tenth"])
    assert measured.seconds("tenth") == harness.Spread(2, 1, 4)
    assert measured.ratio("tenth") == harness.Spread(2, 1, 4)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rounds": 0}, "0 rounds"),
        ({"warmup": -1}, "-1 of warm-up"),
        ({"baseline": "plane"}, "'plane' is none of the callables plain"),
        ({"mean": ["plane"]}, "'plane' is none of the callables plain"),
        ({"clock": "sun"}, "clock 'sun' must be one of wall, cpu, device"),
        ({"clock": "device"}, "needs CUDA"),
    ],
)
def test_impossible_settings_are_told_before_anything_runs(
    harness: ModuleType, clocks: Clocks, wrong: dict, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        harness.run({"plain": clocks.call("plain", (1, 1))}, **wrong)
    assert not clocks.called


def test_nothing_to_measure_and_nothing_to_compare_with(harness: ModuleType, clocks: Clocks) -> None:
    with pytest.raises(ValueError, match="0 callables"):
        harness.run({})
    alone = harness.run({"plain": clocks.call("plain", (1, 1))}, rounds=1)
    with pytest.raises(ValueError, match="no baseline"):
        alone.ratio("plain")


def test_table_and_record(
    harness: ModuleType, clocks: Clocks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = {
        "plain": clocks.call("plain", (0.5, 0.4), (0.25, 0.2)),
        "ours": clocks.call("ours", (0.125, 0.1)),
    }
    measured = harness.run(calls, rounds=2, warmup=0, baseline="plain")
    file = tmp_path / "new" / "benchmarks.jsonl"
    for _ in range(2):
        measured.report(
            "toy",
            settings={"batch": 2, "folder": tmp_path},
            json_file=file,
            columns={"MB": {"ours": "7"}},
            further={"megabytes": 7},
        )
    shown = capsys.readouterr()
    assert "round  2: plain 250 ms, ours 125 ms" in shown.err
    lines = shown.out.splitlines()
    assert "processor " in lines[0] and "torch " in lines[0] and "revision " in lines[0]
    assert lines[1] == f"batch 2, folder {tmp_path}"
    assert lines[2] == "seconds by the clock, median of 2 interleaved rounds"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:8] if "--" not in line]
    assert cells == [
        ["", "s", "min", "max", "/ plain", "ratio min", "ratio max", "MB"],
        ["plain", "0.375", "0.25", "0.5", "1.000", "1.000", "1.000", ""],
        ["ours", "0.125", "0.125", "0.125", "0.375", "0.250", "0.500", "7"],
    ]
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) == 2
    record = records[0]
    assert record["benchmark"] == "toy" and record["command"].startswith("python ")
    assert record["settings"] == {"batch": 2, "folder": str(tmp_path)}
    assert {
        "date",
        "processor",
        "cores",
        "threads",
        "load",
        "python",
        "torch",
        "mokd_det",
        "revision",
    } <= set(record["machine"])
    figures = record["figures"]
    assert figures["megabytes"] == 7 and figures["baseline"] == "plain" and figures["clock"] == "wall"
    ours = figures["summaries"]["ours"]
    assert ours["wall"] == {"median": 0.125, "min": 0.125, "max": 0.125}
    assert ours["ratio"] == {"median": 0.375, "min": 0.25, "max": 0.5}
    assert ours["cpu"]["median"] == pytest.approx(0.1) and "device" not in ours
    assert [round_["plain"]["wall"] for round_ in figures["rounds"]] == [0.5, 0.25]


def test_options_of_all_benchmarks(harness: ModuleType) -> None:
    parser = harness.parser_of("what it times", rounds=3)
    chosen = parser.parse_args(["--clock", "cpu", "--json", "x.jsonl"])
    assert vars(chosen) == {
        "rounds": 3,
        "warmup": 2,
        "threads": 1,
        "clock": "cpu",
        "json": Path("x.jsonl"),
    }
    assert parser.parse_args([]).json.parts[-2:] == ("output", "benchmarks.jsonl")


def test_revision_outside_of_git(
    benchmark_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = benchmark_module("machine")
    assert machine.revision()
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert machine.revision() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert machine.revision() == "unknown"


@pytest.mark.gpu
def test_the_devices_time_and_the_wait_for_it(benchmark_module: Callable[[str], ModuleType]) -> None:
    matrix = torch.randn(2048, 2048, device="cuda")
    measured = benchmark_module("harness").run(
        {"product": lambda: matrix @ matrix}, rounds=3, warmup=1, clock="device"
    )
    times = measured.rounds[0]["product"]
    assert times.device is not None and 0 < times.device <= times.wall
