"""What a benchmark ran on, printed above its table and written beside its figures so that none stands without it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

import mokd_det
from mokd_det.engine.setup import processor_name

__all__ = ["describe", "revision"]


def describe() -> dict[str, str]:
    """Date, processor, GPU if there is one, threads, load of the last minute, versions, and the code's revision."""
    machine = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "processor": processor_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mokd_det": mokd_det.__version__,
        "revision": revision(),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
        machine["cuda"] = str(torch.version.cuda)
    return machine


def revision() -> str:
    """The commit of this checkout, with a plus sign where files differ from it; "unknown" outside of git."""
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
