"""Stored numbers of the published implementations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def goldens() -> dict[str, Any]:
    path = Path(__file__).parent.parent / "data" / "balancing_goldens.json"
    return json.loads(path.read_text(encoding="utf-8"))
