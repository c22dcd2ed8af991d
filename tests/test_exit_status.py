"""Exit statuses of the tools."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = """
import sys
from mokd_det.exit_status import exit_status
from mokd_det.errors import ConfigError

def work():
    {work}

sys.exit(exit_status(work))
"""


def _run(work: str, stdout: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TOOL.format(work=work)]
    return subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        ("pass", 0, ""),
        ("return 1", 1, ""),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("raise ConfigError('seed=-1: must be 0 or more')", 2, "error: seed=-1: must be 0 or more\n"),
    ],
)
def test_statuses(work: str, status: int, said: str) -> None:
    with _run(work, subprocess.DEVNULL) as process:
        assert process.communicate(timeout=120) == (None, said)
    assert process.returncode == status


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_ends_the_tool_quietly(
    lines: int, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the pipe breaks in the work or when what is left is written."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    with _run(f"print('text\\n' * {lines})", writer) as process:
        os.close(writer)
        assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 141


def test_another_broken_pipe_is_told() -> None:
    with _run("raise BrokenPipeError('of a worker')", subprocess.DEVNULL) as process:
        assert "BrokenPipeError: of a worker" in process.communicate(timeout=120)[1]
    assert process.returncode == 1
