"""Programs and ranks as forks of the test process, taken after everything was imported and before anything was run.

A process that imports torch, Detectron2 and this package takes seconds, and the tests start more than a hundred. The
fork that serves them is made once, when the tests have been collected; its own forks are what runs. They differ from
fresh processes in what an import does and in the pickling of a rank's arguments; fresh ones stay in
``tests/engine/test_launch.py``, ``tests/engine/test_torchrun.py``, ``tests/integration/test_main_job.py``,
``tests/test_start_up.py`` and ``tests/test_exit_status.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import itertools
import logging
import multiprocessing
import multiprocessing.context
import os
import pickle
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]
_MESSAGE_BYTES, _MOST_FILES = 1 << 17, 64
_POLL_SECONDS = 0.005

Work = Sequence[str] | tuple[Callable[..., Any], tuple[Any, ...]]
"""A command line without the interpreter, or a function of a module and its arguments."""


def environment(**more: str | Path) -> dict[str, str]:
    """This process's variables, and what a user's program needs from a test."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | {
        k: str(v) for k, v in more.items()
    }


class Program:
    """``subprocess.Popen`` for what Python runs, as far as the tests need it: a fork instead of a fresh interpreter.

    Args:
        command: as ``subprocess.Popen`` takes it, this interpreter first; or a function of a module and its arguments.
        stdout: a file or descriptor; PIPE: collected for :meth:`communicate`; None: this process's own.
        stderr: likewise, or STDOUT.
        env: all of its variables; None: this process's.
        pass_fds: descriptors that it keeps open, by their numbers.
        start_new_session: as ``subprocess`` does; functions share this process's group otherwise.
        ranks_are_forked: what it starts by multiprocessing "spawn" are forks of it.
    """

    def __init__(
        self,
        command: Work,
        *,
        stdin: int | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
        ranks_are_forked: bool = True,
    ) -> None:
        if isinstance(command[0], (str, Path)):
            assert command[0] == sys.executable, command
            command = [str(word) for word in command[1:]]
        self.returncode: int | None = None
        self._collected: dict[int, IO[bytes]] = {}
        self.pid = _ask(
            {
                "work": command,
                "environment": dict(os.environ if env is None else env),
                "folder": str(cwd or Path.cwd()),
                "session": start_new_session,
                "ranks_are_forked": ranks_are_forked,
                "numbers": [1, 2, *pass_fds],
            },
            [*self._outputs(stdout, stderr), *pass_fds],
        )

    def _outputs(self, stdout: IO[Any] | int | None, stderr: IO[Any] | int | None) -> list[int]:
        found: list[int] = []
        for number, given in ((1, stdout), (2, stderr)):
            if given == subprocess.STDOUT:
                found.append(found[0])
            elif given == subprocess.PIPE:
                self._collected[number] = tempfile.TemporaryFile()  # noqa: SIM115
                found.append(self._collected[number].fileno())
            elif given is None:
                found.append(number)
            else:
                found.append(given if isinstance(given, int) else given.fileno())
        return found

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (600.0 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 600.0)
            time.sleep(_POLL_SECONDS)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, once it has ended; a process that does not is killed."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        said = []
        for number in (1, 2):
            file = self._collected.get(number)
            if file is not None:
                file.seek(0)
            said.append("" if file is None else file.read().decode())
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait(10.0)


class NoServer:
    """Stands for ``mokd_det.experiments.fork_server.ForkServer``, which imports everything anew: its commands are forks
    of the test process too."""

    def __init__(self, environment: Mapping[str, str], pass_fds: Sequence[int] = ()) -> None:
        self._environment, self._pass_fds = environment, pass_fds

    def start(self, arguments: Sequence[str], console: Path) -> Program:
        with open(console, "ab") as file:
            return Program(
                [sys.executable, "-m", "mokd_det", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment,
                pass_fds=self._pass_fds,
                start_new_session=True,
            )

    def close(self) -> None:
        """There is nothing to end."""


class ForkedSubprocess:
    """Stands for the module ``subprocess`` in a module of the project that starts programs."""

    Popen, DEVNULL, STDOUT, PIPE = Program, subprocess.DEVNULL, subprocess.STDOUT, subprocess.PIPE
    TimeoutExpired = subprocess.TimeoutExpired


def run(
    command: Work, *, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with captured text, in a fork."""
    pipe = subprocess.PIPE
    program = Program(command, stdout=pipe, stderr=pipe, env=env, cwd=cwd, start_new_session=True)
    said = program.communicate(timeout)
    return subprocess.CompletedProcess(command, program.wait(), *said)


def launch(main: Callable[..., Any], num_processes: int, **options: Any) -> int:
    """``mokd_det.engine.launch`` with its ranks, all of them forks; its exit status."""
    return Program((_launch, (main, num_processes, options))).wait(240.0)


def _launch(main: Callable[..., Any], num_processes: int, options: dict[str, Any]) -> NoReturn:
    from mokd_det.engine import launch as launch_function

    sys.exit(launch_function(main, num_processes, **options))


def spawn(worker: Callable[..., Any], args: Sequence[Any], nprocs: int, timeout: float = 240.0) -> None:
    """``torch.multiprocessing.spawn``: ``worker(rank, *args)`` in forks, which must all end well."""
    ranks = [Program((worker, (rank, *args))) for rank in range(nprocs)]
    assert [rank.wait(timeout) for rank in ranks] == [0] * nprocs


# The server

_server: socket.socket | None = None


def start_server() -> None:
    """Fork the process that all others are forks of; it ends with this one."""
    global _server
    if _server is not None:
        return
    _server, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of forks beside threads: xdist's own wait for messages
        pid = os.fork()
    if pid == 0:
        try:
            _serve(other)
        finally:
            os._exit(0)
    other.close()


def _ask(order: dict[str, Any], files: Sequence[int] = ()) -> Any:
    assert _server is not None, "the tests were not collected by tests/conftest.py"
    sys.stdout.flush()
    sys.stderr.flush()
    # Every question brings the socket for its answer: forks of the test process may ask at the same time.
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with own:
        with other:
            socket.send_fds(_server, [pickle.dumps(order)], [other.fileno(), *files])
        return pickle.loads(own.recv(_MESSAGE_BYTES))


def _serve(end: socket.socket) -> None:
    for number in range(3, 4096):
        if number != end.fileno():
            with contextlib.suppress(OSError):
                os.close(number)
    # The forks' collector would copy every page of what stands here already.
    gc.freeze()
    started: set[int] = set()
    while True:
        data, files, _, _ = socket.recv_fds(end, _MESSAGE_BYTES, _MOST_FILES)
        if not data:
            break
        order, asker = pickle.loads(data), files.pop(0)
        if "poll" in order:
            found, status = os.waitpid(order["poll"], os.WNOHANG)
            started -= {found}
            answer = os.waitstatus_to_exitcode(status) if found else None
        else:
            answer = os.fork()
            if answer == 0:
                end.close()
                os.close(asker)
                _become(order, files)
            started.add(answer)
            for file in files:
                os.close(file)
        with contextlib.suppress(OSError):  # of somebody who was killed meanwhile
            os.write(asker, pickle.dumps(answer))
        os.close(asker)
    for pid in started:  # what a failed test has left behind
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)


def _become(order: dict[str, Any], files: list[int]) -> NoReturn:
    """Be the program, and end with its status."""
    status = 1
    try:
        if order["session"]:
            os.setsid()
        _place_files(files, order["numbers"])
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        _forget_the_test_process()
        if order["ranks_are_forked"]:
            _fork_ranks()
        _run(order["work"])
        status = 0
    except SystemExit as leave:
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


def _place_files(files: list[int], numbers: list[int]) -> None:
    """Give the files that came along the numbers that they had, by way of numbers that none of them has."""
    above = [fcntl.fcntl(file, fcntl.F_DUPFD, 512) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(above, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _forget_the_test_process() -> None:
    import numpy as np
    import torch

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0, closefd=False))  # type: ignore[misc, arg-type]
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = open(number, "w", closefd=False, buffering=1 if number == 2 else -1)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if (
                type(handler) is logging.StreamHandler
            ):  # what an import has added: to the stream of that moment
                handler.setStream(sys.stderr)
    if "mokd_det.data.builtin" in sys.modules:
        _register_data_sets()
    random.seed()
    np.random.seed()  # noqa: NPY002
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _register_data_sets() -> None:
    """Where DETECTRON2_DATASETS says, which was read when the module was imported."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from mokd_det.data.builtin import datasets_root, register_digits
    from mokd_det.data.digits import KINDS, SPLITS

    for name in (f"{kind}_{split}" for kind in KINDS for split in SPLITS):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_digits(datasets_root())


class _ForkedRank(multiprocessing.context.ForkProcess):
    """Begins with the handlers that a fresh process has: ignored signals stay ignored, others are not handled."""

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        super().run()


class _ForkedRanks(multiprocessing.context.ForkContext):
    Process = _ForkedRank


def _fork_ranks() -> None:
    multiprocessing.context._concrete_contexts["spawn"] = _ForkedRanks()  # type: ignore[attr-defined]


def _run(work: Work) -> None:
    if callable(work[0]):
        function, arguments = work
        function(*arguments)  # type: ignore[operator]
        return
    # Options that make a fresh interpreter start sooner say nothing to a fork.
    first, *rest = itertools.dropwhile(("-S", "-E").__contains__, work)
    if first == "-m":
        sys.argv = [rest[0], *rest[1:]]  # type: ignore[list-item]
        runpy.run_module(str(rest[0]), run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]  # type: ignore[list-item]
        exec(compile(str(rest[0]), "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [str(first), *map(str, rest)]
        runpy.run_path(str(first), run_name="__main__")
