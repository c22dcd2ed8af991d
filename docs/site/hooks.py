"""What the site has beside the pages of ``docs/``: the README, the data sets' page, a reference page per room.

Links of pages to files of the repository outside ``docs/`` become the files' names: the site has no copy of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
COPIED = {"README.md": "index.md", "datasets/README.md": "datasets.md"}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def rooms() -> list[str]:
    """The packages of ``mokd_det`` that have public names, in the order of their names."""
    names = [path.parent.name for path in sorted(ROOT.glob("mokd_det/*/__init__.py"))]
    return [
        name for name in names if "__all__" in (ROOT / "mokd_det" / name / "__init__.py").read_text("utf-8")
    ]


def on_config(config: Any) -> Any:
    """The reference is the navigation's last entry."""
    config.nav.append({"Reference": [{room: f"reference/{room}.md"} for room in rooms()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of ``docs/``."""
    for source, target in COPIED.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, target, content=relink(text, Path(source).parent, Path())))
    for room in rooms():
        content = f"# mokd_det.{room}\n\n::: mokd_det.{room}\n"
        files.append(File.generated(config, f"reference/{room}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make a page's links those of the site."""
    if page.file.src_uri.startswith("reference/") or page.file.src_uri in COPIED.values():
        return markdown
    place = Path("docs") / Path(page.file.src_uri).parent
    return relink(markdown, place, Path(page.file.src_uri).parent)


def relink(markdown: str, place: Path, target: Path) -> str:
    """Links as the site needs them.

    Args:
        markdown: a page.
        place: its folder in the repository, which its links start from.
        target: its folder in the site.
    """

    def replaced(found: re.Match[str]) -> str:
        picture, text, link = found.groups()
        name, mark, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:") or not name:
            return found[0]
        file = (ROOT / place / name).resolve().relative_to(ROOT).as_posix()
        inside = COPIED.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if inside is None or (ROOT / file).is_dir():
            return text if file in text or text.startswith("`") else f"{text} (`{file}`)"
        up = "../" * len(target.parts)
        return f"{picture}[{text}]({up}{inside}{mark}{anchor})"

    fenced = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if i % 2 else _LINK.sub(replaced, part) for i, part in enumerate(fenced))
