"""Functions in forks of one process that has imported this package once: seven seconds of CPU less for each command.

A server has one environment for good: PyTorch, oneDNN and MKL read the variables of the instruction set but once. It
computes nothing before it forks, so a fork does what a process of its own would.

A request is one packet: an order as JSON, the socket for its answer and the files of the fork. The order is a process
number (has it ended?) or a :class:`_Work`.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["ForkServer", "ForkedProcess", "serve"]

MODULES = ("tools.train_net", "balancing", "classification", "data", "distillation", "evaluation", "modeling")
_PACKET_BYTES, _MOST_FILES = 1 << 17, 64
_POLL_SECONDS = 0.005


@dataclass(frozen=True)
class _Work:
    """What a fork does: a function by its module and name; with files at these descriptors; in a session of its own or
    not."""

    module: str
    function: str
    arguments: Sequence[Any]
    descriptors: Sequence[int]
    session: bool


class ForkedProcess:
    """A fork as far as :class:`subprocess.Popen` is needed of it.

    Args:
        server: whose fork it is.
        function: of a module; what it returns ends the fork as ``sys.exit`` does.
        arguments: for it; what JSON can hold.
        files: descriptor in the fork → open file here; standard input is empty.
        session: let it lead a session, and so a process group, of its own.

    Attributes:
        pid: its process number.
        returncode: its exit status, negative: the signal that ended it; None: nobody has seen it end.
    """

    def __init__(
        self,
        server: ForkServer,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        files: Mapping[int, int],
        *,
        session: bool = True,
    ) -> None:
        self._server = server
        self.returncode: int | None = None
        work = _Work(function.__module__, function.__name__, arguments, tuple(files), session)
        self.pid: int = server.request(asdict(work), tuple(files.values()))

    def poll(self) -> int | None:
        """Its exit status; None: it runs."""
        if self.returncode is None:
            self.returncode = self._server.request(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status when it has ended.

        Raises:
            subprocess.TimeoutExpired: it still runs after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout or 0.0)
            time.sleep(_POLL_SECONDS)
        return status


class ForkServer:
    """Starts a server; it ends with this process, or with :meth:`close`, once its forks have ended.

    Args:
        environment: of the server and all its forks.
        pass_fds: open files that they keep open too.
    """

    def __init__(self, environment: Mapping[str, str], pass_fds: Sequence[int] = ()) -> None:
        self._end, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(other.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints on loading
                env=dict(environment),
                pass_fds=(other.fileno(), *pass_fds),
                start_new_session=True,
            )

    def start(self, arguments: Sequence[str], console: Path) -> ForkedProcess:
        """Run ``python -m mokd_det`` with these arguments; what it prints is added to the file."""
        from mokd_det.__main__ import main

        with open(console, "ab") as file:
            return ForkedProcess(self, main, [list(arguments)], {1: file.fileno(), 2: file.fileno()})

    def request(self, order: Any, files: Sequence[int] = ()) -> Any:
        """The server's answer: a new fork's process number, or an exit status."""
        # Every request brings the socket for its answer: forks of this process may ask at the same time.
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with own:
            with other, contextlib.suppress(BrokenPipeError):
                socket.send_fds(self._end, [json.dumps(order).encode()], [other.fileno(), *files])
            answer = own.recv(_PACKET_BYTES)
        if not answer:
            raise RuntimeError(f"the server of forks ended with status {self._status()}")
        return json.loads(answer)

    def close(self) -> None:
        """No more requests."""
        self._end.close()
        self._status()

    def _status(self) -> int:
        return self._process.wait()


def serve(end: socket.socket, *, kill: bool = False) -> None:
    """Fork on request until the other end is closed; then wait for the forks, or kill them.

    Raises:
        SystemExit: in a fork, when its function has returned; whatever else the function raises is raised there too.
    """
    running: set[int] = set()
    while True:
        data, files, _, _ = socket.recv_fds(end, _PACKET_BYTES, _MOST_FILES)
        if not data:
            break
        order, asker = json.loads(data), files.pop(0)
        if isinstance(order, int):
            found, status = os.waitpid(order, os.WNOHANG)
            running.discard(found)
            answer = os.waitstatus_to_exitcode(status) if found else None
        else:
            answer = os.fork()
            if answer == 0:
                end.close()
                os.close(asker)
                sys.exit(_run(_Work(**order), files))
            running.add(answer)
        with contextlib.suppress(OSError):  # of somebody who was killed meanwhile
            os.write(asker, json.dumps(answer).encode())
        for file in (asker, *files):
            os.close(file)
    for pid in running:
        if kill:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _run(work: _Work, files: Sequence[int]) -> Any:
    if work.session:
        os.setsid()
    files = [os.open(os.devnull, os.O_RDONLY), *files]
    # By way of numbers that none of them has.
    above = [fcntl.fcntl(file, fcntl.F_DUPFD, 512) for file in files]
    for file in files:
        os.close(file)
    for file, descriptor in zip(above, (0, *work.descriptors), strict=True):
        os.dup2(file, descriptor)
        os.close(file)
    return getattr(importlib.import_module(work.module), work.function)(*work.arguments)


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(f"mokd_det.{module}")
    serve(socket.socket(fileno=int(sys.argv[1])))
