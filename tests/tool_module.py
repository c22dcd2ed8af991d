"""The files of tools/ as modules, for tests that call their functions."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["tool_module"]

TOOLS = str(Path(__file__).parents[1] / "tools")


def tool_module(name: str) -> ModuleType:
    """``tools/<name>.py``, which can import its neighbours as it does when it is run as a script."""
    if TOOLS not in sys.path:
        sys.path.append(TOOLS)
    return importlib.import_module(name)
