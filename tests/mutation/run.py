"""Do the tests notice when a line is wrong?

    python -m tests.mutation.run mokd_det/balancing/min_norm.py tests/balancing
    python -m tests.mutation.run mokd_det/distillation/row_losses.py tests/distillation --sample 40

Each mutant of the file (``mutants.py``) is tested in a forked process, in which the module is imported in its changed
form; the file itself is never written. A mutant is killed by a failing test, by an error, or by taking too long. Prints
the survivors; exit status 1 if fewer than --least percent were killed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.progress import progress
from tests.mutation.mutants import Mutant, mutants

ROOT = Path(__file__).parents[2]


class _Changed(importlib.abc.MetaPathFinder):
    """Imports one file from another source."""

    def __init__(self, file: Path, source: str) -> None:
        self._file, self._source = file, source

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.origin is None or Path(spec.origin).resolve() != self._file:
            return None
        source = self._source

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname):  # type: ignore[no-untyped-def]
                return compile(source, self.path, "exec")

        return importlib.util.spec_from_file_location(name, spec.origin, loader=Loader(name, spec.origin))


def _survives(file: Path, mutant: Mutant | None, tests: Sequence[str], timeout: float) -> bool:
    """Whether all tests pass with the mutant; None: with the file as it is."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            room = ".".join(file.relative_to(ROOT).parts[:2])
            for name in [name for name in sys.modules if name == room or name.startswith(f"{room}.")]:
                del sys.modules[name]
            _forget_registered(room)
            if mutant is not None:
                sys.meta_path.insert(0, _Changed(file, mutant.source))
            import pytest

            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]
            status = int(pytest.main([*options, *tests]))
        finally:
            os._exit(status)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False


def _forget_registered(room: str) -> None:
    """Detectron2 refuses a second class of the same name."""
    registered = importlib.import_module("detectron2.modeling").META_ARCH_REGISTRY._obj_map
    for name in [name for name, item in registered.items() if item.__module__.startswith(f"{room}.")]:
        del registered[name]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="source to change")
    parser.add_argument("tests", nargs="+", help="tests that should notice")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=90.0, metavar="PERCENT", help="to be killed")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the survivors there")
    options = parser.parse_args(arguments)
    # Imported once, here; only the room of the changed file is imported anew by each fork.
    for name in (
        "pytest",
        "hypothesis",
        "mokd_det.engine",
        "mokd_det.distillation",
        "mokd_det.classification",
    ):
        importlib.import_module(name)
    file = options.file.resolve()
    start = time.monotonic()
    if not _survives(file, None, options.tests, 3600.0):
        print("error: the tests do not pass with the file as it is", file=sys.stderr)
        return 2
    timeout = 30.0 + 5.0 * (time.monotonic() - start)
    found = list(mutants(file.read_text()))
    if options.sample is not None and options.sample < len(found):
        found = random.Random(options.seed).sample(found, options.sample)
    found.sort(key=lambda mutant: mutant.line)
    survivors = [m for m in progress(found, what="mutants") if _survives(file, m, options.tests, timeout)]
    killed = 100.0 * (len(found) - len(survivors)) / max(len(found), 1)
    lines = [f"{options.file}: {len(found)} mutants, {killed:.1f} % killed"]
    lines += [f"  line {mutant.line}: {mutant.change}" for mutant in survivors]
    print("\n".join(lines))
    if options.output is not None:
        with atomic_write(options.output, "w") as handle:
            handle.write("\n".join(lines) + "\n")
    return int(killed < options.least)


if __name__ == "__main__":
    sys.exit(main())
