"""Pages of documentation, their fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(
        [
            *ROOT.glob("*.md"),
            *(ROOT / "docs").rglob("*.md"),
            *(ROOT / name / "README.md" for name in ("datasets", "benchmarks")),
        ]
    )
]

_FENCED = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAM = re.compile(r"(python|make|pip|pytest|torchrun) ")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its page, from the repository's root.
        line: where it begins.
        language: what stands behind the fence.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def first_line(self) -> str:
        return self.text.split("\n", 1)[0]


@cache
def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in _FENCED.finditer(text)
    ]


def python_blocks(page: str) -> list[str]:
    """The Python code of a page, in order."""
    return [block.text for block in blocks(page) if block.language == "python"]


def commands(text: str) -> list[list[str]]:
    """The commands of a block, their words without quotes; comments are none, and && parts two."""
    found: list[list[str]] = []
    pending = ""
    for line in text.splitlines():
        pending += line + "\n"
        if line.endswith("\\"):
            pending = pending[:-2] + " "
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        pending = ""
        while "&&" in words:
            found.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        if words:
            found.append(words)
    assert not pending, pending
    return found


def spans(page: str) -> list[list[str]]:
    """The commands that stand inside a sentence or a table, without those that are only hinted at."""
    prose = _FENCED.sub("", (ROOT / page).read_text("utf-8"))
    texts = (" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose))
    return [shlex.split(text) for text in texts if _PROGRAM.match(text) and "…" not in text]
