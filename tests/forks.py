"""Programs and ranks as forks of the test process, taken after everything was imported and before anything was run.

A process that imports torch, Detectron2 and this package takes seconds, and the tests start more than a hundred. The
fork that serves them is made once, when the tests have been collected; its own forks are what runs. They differ from
fresh processes in what an import does and in the pickling of a rank's arguments; fresh ones stay in
``tests/engine/test_launch.py``, ``tests/engine/test_torchrun.py``, ``tests/integration/test_main_job.py``,
``tests/test_start_up.py`` and ``tests/test_exit_status.py``.
"""

from __future__ import annotations

import base64
import contextlib
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
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from mokd_det.experiments.fork_server import ForkedProcess, ForkServer, serve

ROOT = Path(__file__).parents[1]

Work = Sequence[str] | tuple[Callable[..., Any], tuple[Any, ...]]
"""A command line without the interpreter, or a function of a module and its arguments."""


def environment(**more: str | Path) -> dict[str, str]:
    """This process's variables, and what a user's program needs from a test."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | {
        k: str(v) for k, v in more.items()
    }


class Program(ForkedProcess):
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
        assert _server is not None, "the tests were not collected by tests/conftest.py"
        if isinstance(command[0], (str, Path)):
            assert command[0] == sys.executable, command
            command = [str(word) for word in command[1:]]
        self._collected: dict[int, IO[bytes]] = {}
        files = {**self._outputs(stdout, stderr), **dict(zip(pass_fds, pass_fds, strict=True))}
        sys.stdout.flush()
        sys.stderr.flush()
        variables = dict(os.environ if env is None else env)
        program = pickle.dumps((command, variables, str(cwd or Path.cwd()), ranks_are_forked))
        arguments = [base64.b64encode(program).decode()]
        super().__init__(_server, _become, arguments, files, session=start_new_session)

    def _outputs(self, stdout: IO[Any] | int | None, stderr: IO[Any] | int | None) -> dict[int, int]:
        found: dict[int, int] = {}
        for number, given in ((1, stdout), (2, stderr)):
            if given == subprocess.STDOUT:
                found[number] = found[1]
            elif given == subprocess.PIPE:
                self._collected[number] = tempfile.TemporaryFile()  # noqa: SIM115
                found[number] = self._collected[number].fileno()
            elif given is None:
                found[number] = number
            else:
                found[number] = given if isinstance(given, int) else given.fileno()
        return found

    def wait(self, timeout: float | None = None) -> int:
        return super().wait(600.0 if timeout is None else timeout)

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
    """Stands for :class:`ForkServer`, which imports everything anew: its commands are forks of the test process too."""

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


def spawn(worker: Callable[..., Any], folder: Path, nprocs: int = 2, timeout: float = 240.0) -> None:
    """``worker(rank, folder)`` in forks that share a process group (gloo), which must all end well."""
    ranks = [Program((_in_group, (worker, rank, str(folder), nprocs))) for rank in range(nprocs)]
    assert [rank.wait(timeout) for rank in ranks] == [0] * nprocs


def _in_group(worker: Callable[..., Any], rank: int, folder: str, nprocs: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=nprocs)
    worker(rank, folder)
    # The group ends with the process. destroy_process_group hangs now and then where a data-parallel wrapper is alive:
    # the last one that holds the group waits for its threads, and they for Python's lock.
    dist.barrier()


# The server


class _TestServer(ForkServer):
    """A fork of this process; it ends with this one, and kills what a failed test has left behind."""

    def __init__(self) -> None:
        self._end, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with warnings.catch_warnings():
            # Of forks beside threads: xdist's own wait for messages.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            _end_after(lambda: _serve(other))
        other.close()

    def _status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


_server: _TestServer | None = None


def start_server() -> None:
    """Fork the process that all others are forks of."""
    global _server
    _server = _server or _TestServer()


def _serve(end: socket.socket) -> None:
    for number in range(3, 4096):
        if number != end.fileno():
            with contextlib.suppress(OSError):
                os.close(number)
    # The forks' collector would copy every page of what stands here already.
    gc.freeze()
    serve(end, kill=True)


def _end_after(work: Callable[[], None]) -> NoReturn:
    """End this process with the status that ``work`` would end an interpreter with, without what pytest does then."""
    status = 1
    try:
        work()
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


def _become(program: str) -> None:
    """Be the program."""
    work, variables, folder, ranks_are_forked = pickle.loads(base64.b64decode(program))
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    _forget_the_test_process()
    if ranks_are_forked:
        _fork_ranks()
    _run(work)


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
