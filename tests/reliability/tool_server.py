"""Runs tools in forked processes, so that fifty runs do not import torch fifty times.

Started as a process of its own, which never runs anything of torch's itself; orders come as JSON lines on standard
input. Each run is the tool's own ``__main__``, in a session of its own, with its output in a file.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class ToolServer:
    """The other end of the pipe."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
            text=True,
        )

    def start(self, tool: str, log: Path, *arguments: str) -> int:
        """Start ``tools/<tool>``; returns the process id."""
        return self._ask({"start": [str(ROOT / "tools" / tool), *arguments], "log": str(log)})

    def wait(self, pid: int, timeout: float = 120.0) -> int:
        """Exit status as subprocess gives it: negative for a signal.

        Raises:
            TimeoutError: it did not end in time; it is killed then.
        """
        status = self._ask({"wait": pid, "timeout": timeout})
        if status is None:
            raise TimeoutError(f"process {pid} was still running after {timeout} s")
        return status

    def run(self, tool: str, log: Path, *arguments: str) -> int:
        return self.wait(self.start(tool, log, *arguments))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, order: dict) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _run(arguments: list[str], log: str) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    sys.argv = arguments
    status = 1
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int, timeout: float) -> int | None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return None


def _serve() -> None:
    for name in ("data", "distillation", "engine", "evaluation", "checkpoint"):
        importlib.import_module(f"mokd_det.{name}")
    importlib.import_module("tests.engine.toy")

    started = []
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            pid = os.fork()
            if pid == 0:
                _run(order["start"], order["log"])
            started.append(pid)
            print(pid, flush=True)
        else:
            print(json.dumps(_wait(order["wait"], order["timeout"])), flush=True)
    # What a failed test has left behind, with the processes it has started.
    for pid in started:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
