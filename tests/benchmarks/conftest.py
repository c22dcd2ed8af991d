"""The programs of benchmarks/ as modules."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """``benchmarks/<name>.py``, importing its neighbours as when it runs as a program."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module
