"""Which tests run which functions: a mutant needs to be shown only to those that execute it."""

from __future__ import annotations

import ast
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Recorder", "Relevance", "record"]


class Recorder:
    """Notes for every test its seconds and the functions of some files that it calls.

    Args:
        files: whose functions count; absolute.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = {str(file) for file in files}
        self.found: dict[str, dict[str, Any]] = {}

    @contextmanager
    def test(self, name: str) -> Iterator[None]:
        """Around the test of this name."""
        called: set[tuple[str, int]] = set()

        def trace(frame: FrameType, event: str, argument: object) -> None:
            if frame.f_code.co_filename in self._files:
                called.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

        start = time.monotonic()
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(None)
        self.found[name] = {"seconds": time.monotonic() - start, "called": sorted(called)}


@contextmanager
def record(files: Sequence[Path], output: Path) -> Iterator[Recorder]:
    """A recorder whose findings are in ``output`` in the end.

    As JSON, {test: {"seconds": s, "called": [[file, first line], …]}}.
    """
    recorder = Recorder(files)
    yield recorder
    output.write_text(json.dumps(recorder.found))


@dataclass(frozen=True)
class Relevance:
    """What a :class:`Recorder` has found, by line.

    Attributes:
        tests: name, seconds and called functions (file, first line) of each.
    """

    tests: Sequence[tuple[str, float, frozenset[tuple[str, int]]]]

    @classmethod
    def read(cls, file: Path) -> Relevance:
        return cls(
            [
                (name, float(entry["seconds"]), frozenset((path, line) for path, line in entry["called"]))
                for name, entry in json.loads(file.read_text()).items()
            ]
        )

    def of(self, file: Path, line: int) -> list[tuple[str, float]]:
        """Name and seconds of the tests that call the function around ``line``, the quickest first.

        A line outside of all functions belongs to every test that calls anything of the file.
        """
        first = _function_around(file, line)
        path = str(file)
        found = [
            (name, seconds)
            for name, seconds, called in self.tests
            if ((path, first) in called if first is not None else any(place[0] == path for place in called))
        ]
        return sorted(found, key=lambda test: test[1])


def _function_around(file: Path, line: int) -> int | None:
    """First line, decorators included, of the innermost function around ``line``."""
    best: tuple[int, int] | None = None
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first <= line <= (node.end_lineno or first) and (best is None or first > best[0]):
                best = (first, node.lineno)
    return None if best is None else best[0]
