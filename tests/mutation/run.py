"""Do the tests notice when a line is wrong?

    python -m tests.mutation.run mokd_det/balancing/min_norm.py --tests tests/balancing
    python -m tests.mutation.run mokd_det/distillation --tests tests/distillation --sample 200

First all tests run once, to learn which of them call which functions of the files. Then each mutant (``mutants.py``)
is shown to the tests that call the changed function, quickest first, in a forked process in which the functions have
the changed code; the files themselves are never written. A mutant is killed by a failing test, by an error, or by time
running out. Processes that a test starts anew do not see the change. Prints the survivors; exit status 1 if fewer than
--least percent were killed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.progress import progress
from tests.mutation.called import Relevance, record
from tests.mutation.mutants import Mutant, mutants
from tests.mutation.swap import swap

ROOT = Path(__file__).parents[2]
_FEW = 20  # tests that show whether a file's own text can be put in


@dataclass(frozen=True)
class _Trial:
    """One mutant before the tests that run it."""

    file: Path
    mutant: Mutant
    tests: Sequence[pytest.Item]
    seconds: float

    def fails(self) -> bool:
        swap(self.file, self.mutant.source)
        return not _pass(self.tests)


def _pass(tests: Sequence[pytest.Item]) -> bool:
    """Whether all tests pass; ends at the first that does not."""
    for test, following in zip(tests, [*tests[1:], None], strict=True):
        if any(report.failed for report in runtestprotocol(test, nextitem=following, log=False)):
            return False
    return True


def _fork(fails: Callable[[], bool]) -> int:
    """Start ``fails`` in a silent child, whose exit status says what it returned; an exception counts as a failure."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        status = int(fails())
    finally:
        os._exit(status)


class _Mutations:
    """A pytest plugin that tries mutants where pytest would run the tests that it has collected."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.status = 2

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        files = sorted(
            file.resolve()
            for source in self.options.sources
            for file in (source.rglob("*.py") if source.is_dir() else [source])
        )
        relevance = self._relevance(files, session.items)
        if relevance is None:
            print("error: the tests do not pass with the files as they are", file=sys.stderr)
            return True
        items = {item.nodeid: item for item in session.items}

        def trial(file: Path, mutant: Mutant, most: int | None = None) -> _Trial:
            tests = relevance.of(file, mutant.line)[:most]
            return _Trial(file, mutant, [items[name] for name, _ in tests], sum(s for _, s in tests))

        # The text as it is must pass in the same way, or every mutant of its file would count as killed.
        same = [
            trial(file, Mutant(0, "nothing", file.read_text()), _FEW)
            for file in files
            if file.name != "__init__.py"
        ]
        for unchanged, survives in _outcomes(same, self.options.jobs):
            if not survives:
                print(f"left out: {unchanged.file.relative_to(ROOT)}, whose own text cannot be put in")
                files.remove(unchanged.file)
        found = [(file, mutant) for file in files for mutant in mutants(file.read_text())]
        if self.options.sample is not None and self.options.sample < len(found):
            found = random.Random(self.options.seed).sample(found, self.options.sample)
        trials = [trial(file, mutant) for file, mutant in found]
        outcomes = _outcomes(trials, self.options.jobs)
        results = list(progress(outcomes, what="mutants", total=len(trials)))
        self._report(files, results)
        killed = sum(not survives for _, survives in results)
        self.status = int(100.0 * killed < self.options.least * len(results))
        return True

    @staticmethod
    def _relevance(files: Sequence[Path], items: Sequence[pytest.Item]) -> Relevance | None:
        """None: the tests do not pass with the files as they are."""
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "called.json"

            def fails() -> bool:
                with record(files, output) as recorder:
                    for item, following in zip(items, [*items[1:], None], strict=True):
                        with recorder.test(item.nodeid):
                            reports = runtestprotocol(item, nextitem=following, log=False)
                        if any(report.failed for report in reports):
                            return True
                return False

            _, status = os.waitpid(_fork(fails), 0)
            return None if status else Relevance.read(output)

    def _report(self, files: Sequence[Path], results: Sequence[tuple[_Trial, bool]]) -> None:
        lines = []
        for file in files:
            of_file = sorted(
                ((trial, survives) for trial, survives in results if trial.file == file),
                key=lambda result: result[0].mutant.line,
            )
            survivors = [trial for trial, survives in of_file if survives]
            if of_file:
                lines.append(_share(str(file.relative_to(ROOT)), len(of_file), len(survivors)))
            lines += [
                f"  line {trial.mutant.line}: {trial.mutant.change}{'' if trial.tests else ' (no test calls it)'}"
                for trial in survivors
            ]
        lines.append(_share("all", len(results), sum(survives for _, survives in results)))
        print("\n".join(lines))
        if self.options.output is not None:
            with atomic_write(self.options.output, "w") as handle:
                handle.write("\n".join(lines) + "\n")


def _outcomes(trials: Sequence[_Trial], jobs: int) -> Iterator[tuple[_Trial, bool]]:
    """Each trial with whether its mutant survives, ``jobs`` at a time, as they end."""
    waiting = deque(trials)
    running: dict[int, tuple[_Trial, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            trial = waiting.popleft()
            # Much longer than the tests take: a loop without an end.
            running[_fork(trial.fails)] = trial, time.monotonic() + 20.0 + 5.0 * trial.seconds
        for pid, (trial, deadline) in list(running.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found and time.monotonic() > deadline:
                os.kill(pid, 9)
                found, status = os.waitpid(pid, 0)
            if found:
                del running[pid]
                yield trial, status == 0
        time.sleep(0.005)


def _share(name: str, tried: int, survived: int) -> str:
    return f"{name}: {tried} mutants, {100.0 * (tried - survived) / max(tried, 1):.1f} % killed"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", type=Path, nargs="+", help="files or folders to change")
    parser.add_argument("--tests", nargs="+", required=True, help="that should notice")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=90.0, metavar="PERCENT", help="to be killed")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutants at a time")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the survivors there")
    plugin = _Mutations(parser.parse_args(arguments))
    options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--no-summary"]
    pytest.main([*options, *plugin.options.tests], plugins=[plugin])
    return plugin.status


if __name__ == "__main__":
    sys.exit(main())
