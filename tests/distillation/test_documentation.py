"""docs/methods.md says what is there."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import mokd_det.distillation
from mokd_det.distillation import Method
from tests.documentation.pages import python_blocks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_every_method_has_a_row() -> None:
    exported = (getattr(mokd_det.distillation, name) for name in mokd_det.distillation.__all__)
    methods = {
        item.__name__
        for item in exported
        if isinstance(item, type) and issubclass(item, Method) and item is not Method
    }
    assert methods and methods == set(re.findall(r"^\| `([A-Z]\w+)` \|", PAGE, flags=re.MULTILINE))


def test_the_configs_it_lists_exist() -> None:
    listed = set(re.findall(r"`(configs/[\w/]+\.py)`", PAGE))
    assert listed and not [name for name in listed if not (ROOT / name).is_file()]
    detectors = {str(path.relative_to(ROOT)) for path in (ROOT / "configs" / "detectors").glob("*.py")}
    assert detectors <= listed


def test_its_example_runs() -> None:
    (example,) = python_blocks("docs/methods.md")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "docs/methods.md", "exec"), {})
    assert printed.getvalue() == "(256,)\n"
