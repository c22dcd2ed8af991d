"""Lines per room: `make rooms`. Of Python also how many are code, docstrings, comments and blank."""

from __future__ import annotations

import ast
import io
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = ("lines", "code", "docstrings", "comments", "blank")
_HAS_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def count(text: str, is_python: bool) -> Counter[str]:
    """The lines of a file by kind; of other languages than Python just their number."""
    lines = text.splitlines()
    if not is_python:
        return Counter(lines=len(lines))
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _HAS_DOCSTRING) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    alone = {t.start[0] for t in tokens if t.type == tokenize.COMMENT and t.line.lstrip().startswith("#")}
    blank = {number for number, line in enumerate(lines, 1) if not line.strip()} - docstrings
    found = Counter(lines=len(lines), docstrings=len(docstrings), comments=len(alone), blank=len(blank))
    found["code"] = 2 * found["lines"] - found.total()
    return found


def room(path: Path) -> str:
    """The first folder of a file's path; of the package also the second."""
    return "/".join(path.parts[: 2 if path.parts[0] == "mokd_det" and len(path.parts) > 2 else 1])


def main() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    rooms: dict[str, Counter[str]] = {}
    for path in map(Path, filter(None, listed.stdout.split("\0"))):
        if path.suffix in (".py", ".html", ".css", ".sh") and len(path.parts) > 1 and (ROOT / path).is_file():
            text = (ROOT / path).read_text("utf-8")
            rooms.setdefault(room(path), Counter()).update(count(text, path.suffix == ".py"))
    outside: Counter[str] = sum((found for name, found in rooms.items() if name != "tests"), Counter())
    print("".join(f"{kind:>11}" for kind in KINDS))
    for name, found in [*rooms.items(), ("all but tests", outside)]:
        print("".join(f"{found[kind]:>11,}" for kind in KINDS), "", name)


if __name__ == "__main__":
    main()
