"""What every test begins with, and how many processes share them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from tests import forks

GIB_PER_PROCESS = 3.0
"""Torch and what a test makes, and the processes that some tests start."""


@pytest.hookimpl(optionalhook=True)  # tests.mutation runs without xdist
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: as many as there are cores for this process, and no more than the memory holds."""
    cores = float(len(os.sched_getaffinity(0)))
    limit = Path("/sys/fs/cgroup/cpu.max")
    if limit.is_file():
        quota, period = limit.read_text().split()
        cores = cores if quota == "max" else min(cores, int(quota) / int(period))
    return max(1, int(min(cores, _gib_available() / GIB_PER_PROCESS)))


def _gib_available() -> float:
    """Memory that programs can have without swapping; a container's own limit where it is lower."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and limit.read_text().strip() != "max":
        available = min(available, (int(limit.read_text()) - int(used.read_text())) / 2**30)
    return available


def pytest_collection_finish(session: pytest.Session) -> None:
    """Now that the tests' imports are done and none has run, fork what their programs are forks of."""
    if session.items and not session.config.option.collectonly:
        forks.start_server()


@pytest.fixture(autouse=True)
def loggers_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that an earlier test ran in this process has cut its loggers off from the root; caplog listens there. The
    handlers that a test's own tools add go with it: they would write to a stream that is closed by then."""
    for name in ("mokd_det", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "propagate", True)
        closed = [h for h in logger.handlers if getattr(getattr(h, "stream", None), "closed", False)]
        monkeypatch.setattr(logger, "handlers", [h for h in logger.handlers if h not in closed])
