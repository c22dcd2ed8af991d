"""The page in a real browser: nothing runs, nothing is loaded, everything fits, light and dark.

Needs Chromium, which is no Python package, and is therefore run by name only:

    python -m pytest tests/report/browser_check.py

``BROWSER`` names another executable of the Chromium family.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from mokd_det.tools import report
from tests.report.tiny_run import tiny_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SCRIPT = "<script>document.title='ran'<"


def browser() -> str:
    """The executable."""
    for name in (os.environ.get("BROWSER", ""), *NAMES):
        if name and (found := shutil.which(name)):
            return found
    raise AssertionError("this check needs a browser: install chromium, or set BROWSER to the path of one")


def run_browser(directory: Path, *arguments: str) -> str:
    """Run it without a window and without a network; returns what it prints."""
    command = [
        browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={directory / 'profile'}",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    first = tiny_run(root, "plain")
    second = tiny_run(root, f"a very long name without any blank {SCRIPT}", dataset=first.dataset)
    output = root / "page.html"
    assert (
        report.main([str(first.directory), str(second.directory), "--output", str(output), "--score", "0"])
        == 0
    )
    return output


def test_no_script_runs_even_without_the_policy(page):
    """The policy forbids scripts; names must not become any even where a mail program drops it."""
    text = page.read_text(encoding="utf-8")
    open_page = page.with_name("open.html")
    open_page.write_text(
        re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*/>', "", text), encoding="utf-8"
    )
    for file in (page, open_page):
        shown = run_browser(page.parent, "--dump-dom", file.as_uri())
        title = re.search(r"<title>(.*?)</title>", shown)
        assert title is not None and title[1].startswith("plain, a very long name")
        assert "<script" not in shown
        # The browser has understood the page as it was written: no element was moved or closed for it.
        for tag in ("section", "svg", "table", "figure", "img", "details"):
            assert len(re.findall(f"<{tag}[ >]", shown)) == len(re.findall(f"<{tag}[ >]", text)), tag


@pytest.mark.parametrize("width", [360, 800, 1280, 2000])
def test_nothing_is_wider_than_the_window(page, width):
    """Tables scroll by themselves; the page never does sideways."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*/>', "", page.read_text(encoding="utf-8"))
    frame = page.with_name(f"frame{width}.html")
    frame.write_text(
        f'<!DOCTYPE html><html><body><iframe id="f" style="width:{width}px;height:900px;border:0" '
        f'srcdoc="{html.escape(text, quote=True)}"></iframe><script>document.getElementById("f").onload = function() '
        "{ const page = this.contentDocument; page.querySelectorAll('details').forEach(d => d.open = true);"
        " document.title = page.documentElement.scrollWidth; };</script></body></html>",
        encoding="utf-8",
    )
    shown = run_browser(
        page.parent, "--dump-dom", "--virtual-time-budget=5000", "--window-size=2200,1000", frame.as_uri()
    )
    title = re.search(r"<title>(\d+)</title>", shown)
    assert title is not None and int(title[1]) <= width


def test_light_and_dark(page):
    means = []
    for name, scheme in (("light", "1"), ("dark", "0")):
        picture = page.with_name(f"{name}.png")
        run_browser(
            page.parent,
            f"--blink-settings=preferredColorScheme={scheme}",
            "--window-size=1280,3000",
            f"--screenshot={picture}",
            page.as_uri(),
        )
        pixels = imread(picture)[..., :3]
        means.append(float(np.median(pixels)))
        # Coloured marks: the curves.
        assert (np.ptp(pixels, axis=2) > 0.4).mean() > 0.002
    assert means[0] > 0.9 and means[1] < 0.2
