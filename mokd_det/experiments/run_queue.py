"""Commands as child processes, some at a time, some after others, with one line of progress for all of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mokd_det.experiments.fork_server import ForkedProcess, ForkServer

__all__ = ["ChildFailed", "Job", "RunQueue", "clock", "interrupt_on_signals", "last_lines"]

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0
_MEASURED_ITERATIONS = 20


@dataclass
class Job:
    """One command.

    Attributes:
        name: for people; unique.
        command: program and arguments.
        console: file that collects what the command prints.
        needs: names of the jobs that must have ended well before.
        expected_seconds: guess of its duration, for the first estimates.
        iterations: training steps it makes; 0: it makes none.
        metrics: the ``metrics.json`` its progress is read from; None: none.
        is_done: asked right before the start; True: there is nothing to do.
        before: run right before the start, when ``is_done`` was False; may return a remark.
        after: run when it has ended well; may return a remark for the person who waits.
        environment: variables of its own.
    """

    name: str
    command: Sequence[str]
    console: Path
    needs: Sequence[str] = ()
    expected_seconds: float = 10.0
    iterations: int = 0
    metrics: Path | None = None
    is_done: Callable[[], bool] = lambda: False
    before: Callable[[], str] = lambda: ""
    after: Callable[[], str] = lambda: ""
    environment: Mapping[str, str] = field(default_factory=dict)


class ChildFailed(Exception):
    """A command that ended badly.

    Attributes:
        job: which one.
        status: its exit status; negative: the signal that ended it.
    """

    def __init__(self, job: Job, status: int) -> None:
        super().__init__(f"{job.name} ended with status {status}")
        self.job = job
        self.status = status


@dataclass
class _Child:
    """A running command and how far it is."""

    job: Job
    process: subprocess.Popen[bytes] | ForkedProcess
    started: float
    started_at: float
    worker: int
    first: tuple[float, int] | None = None
    latest: tuple[float, int] | None = None

    def look(self, now: float) -> None:
        """Read the progress; the first reading after the start is what the speed is measured from."""
        iteration = (
            _last_iteration(self.job.metrics, self.started_at) if self.job.metrics is not None else None
        )
        if iteration is None or (self.latest is not None and iteration <= self.latest[1]):
            return
        self.latest = (now, iteration)
        if self.first is None:
            self.first = self.latest

    @property
    def done_iterations(self) -> int:
        return min(self.latest[1] + 1, self.job.iterations) if self.latest is not None else 0

    def measured_seconds(self) -> float | None:
        """Duration of the whole job at the speed seen so far; None while too little was seen."""
        if self.first is None or self.latest is None:
            return None
        iterations = self.latest[1] - self.first[1]
        if iterations < _MEASURED_ITERATIONS:
            return None
        return (self.latest[0] - self.first[0]) / iterations * self.job.iterations

    def remaining_seconds(self, now: float, pace: float) -> float:
        whole = self.measured_seconds()
        if whole is not None and self.latest is not None:
            left = whole * (1 - self.done_iterations / self.job.iterations)
            return max(0.0, left - (now - self.latest[0]))
        if self.job.iterations and self.latest is not None:
            return self.job.expected_seconds * pace * (1 - self.done_iterations / self.job.iterations)
        return max(1.0, self.job.expected_seconds * pace - (now - self.started))


@dataclass
class RunQueue:
    """Runs jobs, in their order as far as their needs allow.

    Args:
        jobs: all of them.
        workers: how many run at once.
        environment: of the children.
        worker_environments: what is added to it, per worker (a GPU for each); empty: nothing.
        pass_fds: open files that the children keep open too (a lock).
        fork: run this package's own commands in forks of a process that has imported it (:mod:`fork_server`); not
            where a GPU computes, whose state no fork may share.
        stream: where the progress goes.
        interval: seconds between lines when ``stream`` is no terminal.
    """

    jobs: Sequence[Job]
    workers: int
    environment: Mapping[str, str]
    worker_environments: Sequence[Mapping[str, str]] = ()
    pass_fds: Sequence[int] = ()
    fork: bool = False
    stream: IO[str] = field(default_factory=lambda: sys.stdout)
    interval: float = 10.0

    def __post_init__(self) -> None:
        known: set[str] = set()
        for job in self.jobs:
            if job.name in known or not known.issuperset(job.needs):
                raise ValueError(
                    f"job {job.name!r}: names must be unique, and needs stand before who needs them"
                )
            known.add(job.name)
        if self.worker_environments and len(self.worker_environments) != self.workers:
            raise ValueError(
                f"{len(self.worker_environments)} worker environments for {self.workers} workers"
            )
        # -1: the file system knows no locks.
        self.pass_fds = [descriptor for descriptor in self.pass_fds if descriptor >= 0]
        self._servers: dict[str, ForkServer] = {}
        self._running: dict[str, _Child] = {}
        self._ended: set[str] = set()
        # Ratios of measured to expected durations, of running and ended jobs.
        self._paces: dict[str, float] = {}
        self._line_width = 0
        self._last_line = float("-inf")

    def run(self) -> None:
        """Run everything.

        Raises:
            ChildFailed: the first command that ended badly; the others were ended too.
            KeyboardInterrupt: from a signal; the children were ended.
        """
        self._began = time.monotonic()
        try:
            while len(self._ended) < len(self.jobs):
                self._start_ready()
                self._collect()
                self._report()
                if self._running:
                    time.sleep(_POLL_SECONDS)
        finally:
            self._clear_line()
            self._stop_all()
            while self._servers:
                self._servers.popitem()[1].close()

    def _start_ready(self) -> None:
        for job in self.jobs:
            if len(self._running) >= self.workers:
                return
            if job.name in self._running or job.name in self._ended or not self._ended.issuperset(job.needs):
                continue
            if job.is_done():
                self._ended.add(job.name)
                self._say(f"{job.name}: already there")
                continue
            remark = job.before()
            if remark:
                self._say(f"{job.name}: {remark}")
            job.console.parent.mkdir(parents=True, exist_ok=True)
            started_at = time.time()
            worker = min(set(range(self.workers)) - {child.worker for child in self._running.values()})
            added = self.worker_environments[worker] if self.worker_environments else {}
            process = self._start(job, {**self.environment, **added, **job.environment})
            self._running[job.name] = _Child(job, process, time.monotonic(), started_at, worker)

    def _start(self, job: Job, environment: dict[str, str]) -> subprocess.Popen[bytes] | ForkedProcess:
        own = [sys.executable, "-m", "mokd_det"]
        if self.fork and list(job.command[: len(own)]) == own:
            key = json.dumps(environment, sort_keys=True)
            if key not in self._servers:
                self._servers[key] = ForkServer(environment, self.pass_fds)
            return self._servers[key].start(job.command[len(own) :], job.console)
        with open(job.console, "ab") as console:
            return subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=self.pass_fds,
                # Ctrl-C must reach the children through us, so that they end before we say so.
                start_new_session=True,
            )

    def _collect(self) -> None:
        for name, child in list(self._running.items()):
            now = time.monotonic()
            child.look(now)
            status = child.process.poll()
            measured = child.measured_seconds()
            if measured is not None:
                self._paces[name] = measured / child.job.expected_seconds
            if status is None:
                continue
            del self._running[name]
            if status != 0:
                raise ChildFailed(child.job, status)
            self._ended.add(name)
            remark = child.job.after()
            self._say(f"{name}: done in {clock(now - child.started)}{', ' if remark else ''}{remark}")

    def remaining_seconds(self) -> float:
        """Estimate until all jobs have ended: the queue is played through with each one's duration."""
        now = time.monotonic()
        pace = sum(self._paces.values()) / len(self._paces) if self._paces else 1.0
        ends = {name: child.remaining_seconds(now, pace) for name, child in self._running.items()}
        finished = dict.fromkeys(self._ended, 0.0)
        waiting = [job for job in self.jobs if job.name not in ends and job.name not in finished]
        clock_time = 0.0
        while waiting or ends:
            for job in list(waiting):
                if len(ends) < self.workers and all(
                    finished.get(name, clock_time + 1) <= clock_time for name in job.needs
                ):
                    ends[job.name] = clock_time + job.expected_seconds * pace
                    waiting.remove(job)
            name = min(ends, key=ends.__getitem__)
            clock_time = ends.pop(name)
            finished[name] = clock_time
        return clock_time

    def _report(self) -> None:
        now = time.monotonic()
        is_terminal = self.stream.isatty()
        if not self._running or now - self._last_line < (0.5 if is_terminal else self.interval):
            return
        self._last_line = now
        parts = []
        for child in self._running.values():
            job = child.job
            parts.append(
                f"{job.name} {child.done_iterations}/{job.iterations}" if job.iterations else job.name
            )
        waiting = len(self.jobs) - len(self._ended) - len(self._running)
        if waiting:
            parts.append(f"{waiting} waiting")
        # The estimate stands first: a narrow terminal cuts the end.
        estimate = f"[{clock(now - self._began)}, about {clock(self.remaining_seconds())} left]"
        line = f"{estimate} {' | '.join(parts)}"
        if is_terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r" + line.ljust(self._line_width))
            self._line_width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def _say(self, text: str) -> None:
        self._clear_line()
        self.stream.write(text + "\n")
        self.stream.flush()

    def _clear_line(self) -> None:
        if self._line_width:
            self.stream.write("\r" + " " * self._line_width + "\r")
            self._line_width = 0

    def _stop_all(self) -> None:
        children = [child.process for child in self._running.values()]
        for process in children:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in children:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)
                process.wait()
        self._running.clear()


def _signal_group(process: subprocess.Popen[bytes] | ForkedProcess, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _last_iteration(path: Path, since: float) -> int | None:
    """Iteration of the last complete line of a ``metrics.json``; None if nothing is newer than ``since``."""
    try:
        if os.path.getmtime(path) < since:
            return None
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 16384))
            lines = file.read().split(b"\n")[:-1]
        record: Any = json.loads(lines[-1])
        return int(record["iteration"])
    except (OSError, IndexError, ValueError, KeyError, TypeError):
        # The file is not there yet, or a run that resumes is rewriting it: the next look will tell.
        return None


def last_lines(path: Path, count: int = 15) -> list[str]:
    """The last lines of a text file, without those that are empty."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-count:]


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss from one hour up."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP (a closed terminal) raise KeyboardInterrupt as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous):
            signal.signal(number, handler)
