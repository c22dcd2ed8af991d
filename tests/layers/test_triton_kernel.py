"""The Triton kernels, in processes of their own: whether Triton compiles or interprets is settled at its import."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "layers" / "triton_cases.py"
CASES_COUNT = 28


def _passed(interpret: bool) -> int:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None and "skipped" not in done.stdout, done.stdout[-1000:]
    return int(found[1])


def _triton_version() -> tuple[int, int]:
    major, minor, *_ = importlib.metadata.version("triton").split(".")
    return int(major), int(minor)


@pytest.mark.skipif(_triton_version() < (3, 1), reason="the interpreter of Triton 3.0 writes no outputs")
def test_interpreted() -> None:
    assert _passed(interpret=True) == CASES_COUNT


@pytest.mark.gpu
def test_compiled() -> None:
    assert _passed(interpret=False) == CASES_COUNT
