"""One server of forked tools for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability.tool_server import ToolServer


@pytest.fixture(scope="session")
def tools() -> Iterator[ToolServer]:
    server = ToolServer()
    yield server
    server.close()
