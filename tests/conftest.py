"""What every test begins with."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def loggers_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that an earlier test ran in this process has cut its loggers off from the root; caplog listens there."""
    for name in ("mokd_det", "detectron2", "fvcore"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
