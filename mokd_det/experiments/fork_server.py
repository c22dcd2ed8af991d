"""Commands of this package in forks of one process that has imported it once: seven seconds of CPU less for each.

A server has one environment for good: PyTorch, oneDNN and MKL read the variables of the instruction set but once. It
computes nothing before it forks, so a fork does what a process of its own would.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["ForkServer", "ForkedProcess"]

MODULES = ("tools.train_net", "balancing", "classification", "data", "distillation", "evaluation", "modeling")
_PATIENCE = 0.1


class ForkedProcess:
    """A fork as far as :class:`subprocess.Popen` is needed of it; ``pid`` leads a process group of its own."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid

    def poll(self) -> int | None:
        """Its exit status, negative: the signal that ended it; None: it runs."""
        return self._server.status(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status when it has ended.

        Raises:
            subprocess.TimeoutExpired: it still runs after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout or 0.0)
            time.sleep(_PATIENCE)
        return status


class ForkServer:
    """Starts a server; it ends with this process, or with :meth:`close`, once its forks have ended.

    Args:
        environment: of the server and all its forks.
        pass_fds: open files that they keep open too.
    """

    def __init__(self, environment: Mapping[str, str], pass_fds: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
        self._ended: dict[int, int] = {}

    def start(self, arguments: Sequence[str], console: Path) -> ForkedProcess:
        """Run ``python -m mokd_det`` with these arguments; what it prints is added to the file."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([list(arguments), str(console)]) + "\n")
        self._process.stdin.flush()
        while True:
            kind, pid = self._read()
            if kind == "began":
                return ForkedProcess(self, pid)

    def status(self, pid: int) -> int | None:
        """See :meth:`ForkedProcess.poll`."""
        assert self._process.stdout is not None
        while pid not in self._ended and select.select([self._process.stdout], [], [], 0)[0]:
            self._read()
        return self._ended.get(pid)

    def close(self) -> None:
        """No more commands."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()

    def _read(self) -> tuple[str, int]:
        assert self._process.stdout is not None
        # Answers have a fixed length, since what a buffered readline took in early would be hidden from select.
        line = os.read(self._process.stdout.fileno(), _LINE)
        if not line:
            raise RuntimeError(f"the server of forks ended with status {self._process.wait()}")
        kind, pid, status = line.decode().split()
        if kind == "ended":
            self._ended[int(pid)] = int(status)
        return kind, int(pid)


_LINE = 32


def _serve(requests: IO[str], answers: int) -> None:
    running: set[int] = set()
    is_open = True
    while is_open or running:
        ready = is_open and select.select([requests], [], [], _PATIENCE if running else None)[0]
        if ready:
            line = requests.readline()
            is_open = bool(line)
            if line:
                pid = os.fork()
                if not pid:
                    os.close(answers)
                    sys.exit(_run(*json.loads(line)))  # as a process of its own ends, all files flushed
                running.add(pid)
                _answer(answers, "began", pid, 0)
        elif running and not is_open:
            time.sleep(_PATIENCE)
        for pid in list(running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                running.remove(pid)
                _answer(answers, "ended", pid, os.waitstatus_to_exitcode(status))


def _answer(answers: int, kind: str, pid: int, status: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(answers, f"{kind} {pid} {status}".ljust(_LINE).encode())


def _run(arguments: list[str], console: str) -> int:
    """In the fork: the command's exit status."""
    try:
        os.setsid()
        with open(console, "ab") as file, open(os.devnull, "rb") as nothing:
            for descriptor, source in ((0, nothing), (1, file), (2, file)):
                os.dup2(source.fileno(), descriptor)
        from mokd_det.__main__ import main

        return main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(f"mokd_det.{module}")
    # What a library prints on loading must not be taken for an answer.
    _ANSWERS = os.dup(1)
    os.dup2(2, 1)
    _serve(sys.stdin, _ANSWERS)
