"""Times several callables against each other in one process, prints a table, and appends the figures to a file.

    measured = run({"plain": plain_step, "ours": our_step}, rounds=9, warmup=2, baseline="plain")
    measured.report("my_benchmark", settings={"batch": 2}, json_file=Path("output/benchmarks.jsonl"))

Machines are shared and their clocks wander, so the callables take turns: each round calls every one once, the round
after that in another order, and ratios are taken within a round. What is told is medians with the smallest and largest
value. Three times are kept of each call: the clock's, the processor's (of all threads of this process, not of its
children; the fair one where other work runs beside), and on CUDA the device's by events.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import describe
from tabulate import tabulate

__all__ = [
    "CLOCKS",
    "Measured",
    "Spread",
    "Times",
    "append_record",
    "heading",
    "measure",
    "options_of",
    "parser_of",
    "run",
    "size",
    "table",
]

RESULTS = Path(__file__).parents[1] / "output" / "benchmarks.jsonl"
CLOCKS = ("wall", "cpu", "device")
"""Names of the three times."""


@dataclass(frozen=True)
class Times:
    """Seconds of one call.

    Attributes:
        wall: by the clock, on CUDA until the device has finished.
        cpu: of the processor, all threads of this process.
        device: between CUDA events around the call; None on a CPU.
    """

    wall: float
    cpu: float
    device: float | None = None

    def of(self, clock: str) -> float:
        """One of the three.

        Raises:
            ValueError: an unknown clock, or "device" on a CPU.
        """
        if clock not in CLOCKS:
            raise ValueError(f"clock {clock!r} must be one of {', '.join(CLOCKS)}")
        seconds: float | None = getattr(self, clock)
        if seconds is None:
            raise ValueError("clock 'device' needs CUDA")
        return seconds


@dataclass(frozen=True)
class Spread:
    """Middle and ends of a few values."""

    median: float
    smallest: float
    largest: float

    @staticmethod
    def over(values: Iterable[float]) -> Spread:
        """Of one value or more."""
        listed = list(values)
        return Spread(statistics.median(listed), min(listed), max(listed))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"median": self.median, "min": self.smallest, "max": self.largest}


@dataclass
class Measured:
    """What :func:`run` saw.

    Attributes:
        rounds: for each round, the times of every callable by name.
        clock: which of the times tables and ratios are about.
        baseline: the callable that the others are compared with; None: no ratios.
        mean: names whose figure is the mean over the rounds and not the median, because calls differ by design (a
            step that updates something every tenth time).
    """

    rounds: list[dict[str, Times]]
    clock: str = "wall"
    baseline: str | None = None
    mean: frozenset[str] = field(default_factory=frozenset)

    @property
    def names(self) -> list[str]:
        """The callables, in their order."""
        return list(self.rounds[0])

    def seconds(self, name: str, clock: str | None = None) -> Spread:
        """Seconds of a callable's calls; ``clock``: None for this run's."""
        return self._spread(name, [times[name].of(clock or self.clock) for times in self.rounds])

    def ratio(self, name: str) -> Spread:
        """A callable's time over the baseline's, taken in each round.

        Raises:
            ValueError: this run has no baseline.
        """
        if self.baseline is None:
            raise ValueError("no baseline to compare with")
        other = self.baseline
        return self._spread(name, self.over_rounds(lambda seconds: seconds[name] / seconds[other]))

    def over_rounds(self, figure: Callable[[Mapping[str, float]], float]) -> list[float]:
        """A figure computed from the seconds of each round, ``{name: seconds}``, such as a quotient of sums."""
        return [figure({name: t.of(self.clock) for name, t in times.items()}) for times in self.rounds]

    def derived(self, figure: Callable[[Mapping[str, float]], float]) -> Spread:
        """Middle and ends of :meth:`over_rounds`."""
        return Spread.over(self.over_rounds(figure))

    def rows(self) -> list[dict[str, str]]:
        """The table's rows, one per callable: seconds with their ends, and the ratio if there is a baseline."""
        made = []
        for name in self.names:
            row = {"": name, **_cells(self.seconds(name), "s")}
            if self.baseline is not None:
                ratio = self.ratio(name)
                row[f"/ {self.baseline}"] = f"{ratio.median:.3f}"
                row["ratio min"], row["ratio max"] = f"{ratio.smallest:.3f}", f"{ratio.largest:.3f}"
            made.append(row)
        return made

    def figures(self) -> dict[str, Any]:
        """Everything seen, for JSON: summaries by clock, ratios, and the single rounds."""
        summaries: dict[str, Any] = {}
        for name in self.names:
            summaries[name] = {
                clock: self.seconds(name, clock).as_dict()
                for clock in CLOCKS
                if getattr(self.rounds[0][name], clock) is not None
            }
            if self.baseline is not None:
                summaries[name]["ratio"] = self.ratio(name).as_dict()
        return {
            "clock": self.clock,
            "baseline": self.baseline,
            "summaries": summaries,
            "rounds": [{name: vars(times) for name, times in round_.items()} for round_ in self.rounds],
        }

    def report(
        self,
        benchmark: str,
        *,
        settings: Mapping[str, Any],
        json_file: Path | None = RESULTS,
        columns: Mapping[str, Mapping[str, str]] | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> None:
        """Print machine, settings and table; append the record.

        Args:
            benchmark: its name, under which the record is found again.
            settings: what was asked for, printed as well.
            json_file: where the record is appended; None: nowhere.
            columns: more columns of the table: heading to text by callable.
            further: figures beyond the times, for the record.
        """
        print(heading(settings))
        print(f"{_CLOCK_TEXT[self.clock]}, median of {len(self.rounds)} interleaved rounds\n")
        rows = self.rows()
        for title, texts in (columns or {}).items():
            for row in rows:
                row[title] = texts.get(row[""], "")
        print(table(rows))
        if json_file is not None:
            append_record(json_file, benchmark, settings, {**self.figures(), **(further or {})})

    def _spread(self, name: str, values: list[float]) -> Spread:
        found = Spread.over(values)
        if name in self.mean:
            return Spread(statistics.fmean(values), found.smallest, found.largest)
        return found


_CLOCK_TEXT = {
    "wall": "seconds by the clock",
    "cpu": "CPU seconds of this process",
    "device": "seconds of the GPU",
}


def run(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    warmup: int = 2,
    baseline: str | None = None,
    clock: str = "wall",
    mean: Iterable[str] = (),
    progress: bool = True,
) -> Measured:
    """Time callables in turn.

    Args:
        calls: what to time; each does its whole work when called once. Results are dropped at once.
        rounds: that count, each calling every callable once.
        warmup: rounds before them: caches, allocators, compilation.
        baseline: name of the callable to compare with.
        clock: "wall", "cpu" or "device".
        mean: see :class:`Measured`.
        progress: a line per round on stderr.

    Raises:
        ValueError: nothing to time, a round number below what is possible, an unknown baseline or clock, or the clock
            "device" without CUDA.
    """
    names = list(calls)
    if not names or rounds < 1 or warmup < 0:
        raise ValueError(f"{len(names)} callables, {rounds} rounds, {warmup} of warm-up: nothing to measure")
    unknown = [name for name in (*mean, *([] if baseline is None else [baseline])) if name not in calls]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of the callables {', '.join(names)}")
    on_gpu = torch.cuda.is_available()
    # Tells about a wrong clock before anything runs.
    Times(0.0, 0.0, 0.0 if on_gpu else None).of(clock)
    kept: list[dict[str, Times]] = []
    for index in range(warmup + rounds):
        # The order rotates: no callable always follows the same one.
        shift = index % len(names)
        taken = {name: _time(calls[name], on_gpu) for name in names[shift:] + names[:shift]}
        if index >= warmup:
            kept.append({name: taken[name] for name in names})
        if progress:
            text = ", ".join(f"{name} {_duration(taken[name].of(clock))}" for name in names)
            print(f"round {index + 1 - warmup:2d}: {text}", file=sys.stderr, flush=True)
    return Measured(kept, clock, baseline, frozenset(mean))


def parser_of(text: str | None, *, rounds: int = 7, warmup: int = 2) -> argparse.ArgumentParser:
    """A parser with this text and ``--rounds --warmup --threads --clock --json``, as all benchmarks have them."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=rounds, metavar="N", help="that count (%(default)s)")
    add("--warmup", type=int, default=warmup, metavar="N", help="before them (%(default)s)")
    add(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="of the CPU (%(default)s); several wait for each other where other work runs beside",
    )
    add(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="the clock's time, this process's CPU time (fair beside other work) or the GPU's (%(default)s)",
    )
    add(
        "--json",
        type=Path,
        default=RESULTS,
        metavar="FILE",
        help="append the figures to this file, one JSON object per line (output/benchmarks.jsonl)",
    )
    return parser


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; ``--threads`` are set, and random numbers begin as ever."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def measure(calls: Mapping[str, Callable[[], object]], options: argparse.Namespace, **more: Any) -> Measured:
    """:func:`run` as the options say."""
    return run(calls, rounds=options.rounds, warmup=options.warmup, clock=options.clock, **more)


def size(text: str) -> tuple[int, int]:
    """(height, width) of "800x1333"."""
    height, width = (int(side) for side in text.split("x"))
    return height, width


def heading(settings: Mapping[str, Any]) -> str:
    """Machine and settings in a few lines, to stand above a table."""
    machine = ", ".join(f"{key} {value}" for key, value in describe().items())
    return machine + "\n" + ", ".join(f"{key} {value}" for key, value in settings.items())


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys as a Markdown table, numbers to the right."""
    headings = list(rows[0])
    columns = ["left", *["right"] * (len(headings) - 1)]
    cells = [[row[title] for title in headings] for row in rows]
    return tabulate(cells, headings, tablefmt="github", colalign=columns, disable_numparse=True)


def append_record(
    file: Path, benchmark: str, settings: Mapping[str, Any], figures: Mapping[str, Any]
) -> None:
    """Append one line to a file of JSON objects: benchmark, machine, command, settings, figures.

    Args:
        file: made, with its folder, if it is not there.
        benchmark: its name.
        settings: values that JSON cannot hold are written as text.
        figures: likewise.
    """
    record = {
        "benchmark": benchmark,
        "machine": describe(),
        "command": shlex.join(["python", *sys.argv]),
        "settings": dict(settings),
        "figures": dict(figures),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(record, default=str) + "\n")


def _time(call: Callable[[], object], on_gpu: bool) -> Times:
    if not on_gpu:
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        return Times(time.perf_counter() - wall, time.process_time() - cpu)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return Times(time.perf_counter() - wall, time.process_time() - cpu, begin.elapsed_time(end) / 1e3)


def _cells(spread: Spread, unit: str) -> dict[str, str]:
    return {unit: f"{spread.median:.4g}", "min": f"{spread.smallest:.4g}", "max": f"{spread.largest:.4g}"}


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
