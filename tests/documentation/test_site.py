"""The site: built strictly, every link of it leads somewhere, and a page outside the navigation stops the build."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.documentation.pages import ROOT

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="the site is built with one Python")


@cache
def anchors(page: Path) -> set[str]:
    return set(re.findall(r'\s(?:id|name)="?([^"\s>]+)', page.read_text("utf-8")))


def build(target: Path, *options: str) -> str:
    """The Makefile's command, into another folder; returns what it said, and raises if it failed."""
    (line,) = re.findall(r"-m (mkdocs build .*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    words = [sys.executable, "-m", *line.split("#")[0].split(), "--site-dir", str(target), *options]
    # Without it the theme prints a notice about its own future.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    done.check_returncode()
    return done.stderr


@pytest.mark.slow
def test_the_site_is_built_strictly_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    assert "WARNING" not in build(tmp_path)
    broken, count = set(), 0
    for page in tmp_path.rglob("*.html"):
        if page.name == "404.html":  # its links start from the server's root
            continue
        for link in re.findall(r'(?:href|src)="?([^"\s>]+)', page.read_text("utf-8")):
            name, _, anchor = html.unescape(link).partition("#")
            if re.match(r"[a-z]+:|//", name):
                continue
            count += 1
            file = (page.parent / unquote(name)).resolve() if name else page
            file = file / "index.html" if file.is_dir() else file
            if not file.exists() or (anchor and unquote(anchor) not in anchors(file)):
                broken.add((str(page.relative_to(tmp_path)), link))
    assert count > 1000 and not broken


@pytest.mark.slow
def test_a_page_that_the_navigation_lacks_stops_the_build(tmp_path: Path) -> None:
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    less = re.sub(r"^ +- Theory: theory\.md\n", "", config, flags=re.MULTILINE)
    assert less != config
    file = ROOT / "mkdocs_without_a_page.yml"
    file.write_text(less)
    try:
        with pytest.raises(subprocess.CalledProcessError) as error:
            build(tmp_path, "--config-file", str(file))
    finally:
        file.unlink()
    assert "theory.md" in error.value.stderr
