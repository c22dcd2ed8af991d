#!/usr/bin/env python
"""Make the pictures of docs/tools.md anew, each by the tool that it shows.

    make docs-pictures
    python docs/make_pictures.py --only eval_tide report
    python docs/make_pictures.py --without report          # no browser needed

They show what `make demo` has left, and photographs of blood cells (BCCD, MIT licence) with the models of the
comparison of docs/results.md that is called "BCCD".

Exit status: 0; 2 if the demo or that comparison has not been run, the browser for the report's picture is missing, or a
tool fails.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.errors import ConfigError
from mokd_det.exit_status import exit_status

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "tools"
LIMIT = 300_000
"""Bytes of a picture, so that the repository stays small."""

WINDOW = 1280, 2070
"""Pixels of a page that are photographed; what is cut there is left out as a whole."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DEMO_FILES = (
    "predictions.png",
    "curves.png",
    *(f"runs/{run}/student_final.pth" for run in ("teacher", "student_seed0", "mokd_seed0")),
)
PHOTOGRAPH_FILES = (
    "runs/teacher_r0/student_final.pth",
    *(f"runs/few_labels/{method}_r0/student_final.pth" for method in ("none", "mokd", "mokd_unlabeled")),
)


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        command: arguments after ``python``; ``{demo}``, ``{bccd}`` (the comparison) and ``{output}`` are
            folders. Empty: the demo itself has drawn it.
        file: what the command draws, below ``{output}``, or the demo's file below ``{demo}``. A page is photographed.
        suffix: the form that it is kept in: PNG for charts, JPEG for photographs.
    """

    command: str
    file: str
    suffix: str = ".png"

    @property
    def is_of_demo(self) -> bool:
        return not self.command or "{demo}" in self.command

    @property
    def is_of_bccd(self) -> bool:
        return "{bccd}" in self.command


STUDENTS = "{demo}/runs/student_seed0 {demo}/runs/mokd_seed0"
LABELS = '--labels "student alone" MoKD'

PICTURES = {
    "check_dataset": Picture(
        "tools/check_dataset.py datasets/bccd/val.json datasets/bccd/images --drop-bad-boxes --samples 12 "
        "--output {output}",
        "contact_sheet.png",
        ".jpg",
    ),
    "plot_dynamics": Picture(
        "tools/plot_dynamics.py {demo}/runs/mokd_seed0 --labels MoKD --output {output}/dynamics.png",
        "dynamics.png",
    ),
    "quickstart_predictions": Picture("", "predictions.png"),
    "quickstart_curves": Picture("", "curves.png"),
    "eval_tide": Picture(
        "tools/eval_tide.py --run {bccd}/runs/teacher_r0 --run {bccd}/runs/few_labels/none_r0 "
        "--run {bccd}/runs/few_labels/mokd_r0 --run {bccd}/runs/few_labels/mokd_unlabeled_r0 "
        '--labels teacher "student alone" MoKD "MoKD, unlabelled" --thresholds 0.5 0.75 --output {output}',
        "tide.png",
    ),
    "visualize_attention": Picture(
        "tools/visualize_attention.py datasets/bccd/images/BloodImage_00058.jpg --run {bccd}/runs/teacher_r0 "
        "--run {bccd}/runs/few_labels/mokd_unlabeled_r0 --run {bccd}/runs/few_labels/none_r0 "
        '--labels teacher "MoKD, unlabelled" "student alone" --set dataloader.test.mapper.augmentation.short_side=256 '
        "dataloader.test.mapper.augmentation.max_long_side=384 --max-objects 4 --output {output}",
        "BloodImage_00058.png",
        ".jpg",
    ),
    "demo": Picture(
        "tools/demo.py datasets/bccd/images/BloodImage_00068.jpg --run {bccd}/runs/few_labels/mokd_unlabeled_r0 "
        "--threshold 0.4 --output {output}",
        "BloodImage_00068.png",
        ".jpg",
    ),
    "report": Picture(
        f"tools/report.py {STUDENTS} {LABELS} --dataset digits_few_test --output {{output}}/report.html",
        "report.html",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    folders = ("demo", "output/demo", "make demo"), ("bccd", "output/few_labels", "the comparison on BCCD")
    for name, folder, of in folders:
        text = f"output of {of} (%(default)s)"
        parser.add_argument(f"--{name}", type=Path, default=Path(folder), metavar="DIR", help=text)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--only", nargs="+", choices=PICTURES, default=[*PICTURES], help="make these")
    chosen.add_argument("--without", nargs="+", choices=PICTURES, default=[], help="leave these as they are")
    options = parser.parse_args(arguments)
    names = [name for name in options.only if name not in options.without]
    return exit_status(lambda: make_pictures(names, options.demo, options.bccd))


def make_pictures(names: Sequence[str], demo: Path, bccd: Path) -> None:
    """Make some pictures.

    Raises:
        ConfigError: the demo or the comparison has not been run, there is no browser, a tool fails, or a picture is
            too large.
    """
    if any(PICTURES[name].is_of_demo for name in names):
        need(demo, DEMO_FILES, "run `make demo` first, or name its output with --demo")
    if any(PICTURES[name].is_of_bccd for name in names):
        need(bccd, PHOTOGRAPH_FILES, "run the comparison of docs/results.md, or name its output with --bccd")
    pages = [name for name in names if PICTURES[name].file.endswith(".html")]
    browser = find_browser(pages[0]) if pages else ""
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        picture = PICTURES[name]
        with tempfile.TemporaryDirectory() as output:
            places = {
                "demo": os.path.relpath(demo, ROOT),
                "bccd": os.path.relpath(bccd, ROOT),
                "output": output,
            }
            found = (Path(output) if picture.command else demo) / picture.file
            if picture.command:
                run([sys.executable, *shlex.split(picture.command.format(**places))])
            if name in pages:
                found = photograph(found, browser)
            content = compressed(found, picture.suffix)
        if len(content) > LIMIT:
            raise ConfigError(f"the picture {name} has {len(content):,} bytes; the limit is {LIMIT:,}")
        target = FOLDER / f"{name}{picture.suffix}"
        with atomic_write(target, "wb") as file:
            file.write(content)
        print(f"{target.relative_to(ROOT)}: {len(content) / 1000:.0f} kB", flush=True)


def need(folder: Path, files: Sequence[str], hint: str) -> None:
    """Refuse a folder that lacks one of the files.

    Raises:
        ConfigError: naming the first of them.
    """
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ConfigError(f"{folder} has no {missing[0]}: {hint}")


def run(command: Sequence[str]) -> None:
    """Run a program in the root of this checkout, with its package and one thread.

    Raises:
        ConfigError: it fails.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError(f"{shlex.join(command)} ended with status {done.returncode}: {last}")


def find_browser(name: str) -> str:
    """The executable that photographs a page; ``BROWSER`` may name it.

    Raises:
        ConfigError: there is none.
    """
    for candidate in (os.environ.get("BROWSER", ""), *BROWSERS):
        if candidate and (found := shutil.which(candidate)):
            return found
    raise ConfigError(
        f"the picture {name} needs a browser: install chromium, set BROWSER to the path of one, "
        f"or leave the picture out with --without {name}"
    )


def photograph(page: Path, browser: str) -> Path:
    """The upper part of a page as a picture beside it, in light colours and without a network."""
    picture = page.with_suffix(".png")
    run(
        [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--blink-settings=preferredColorScheme=1",
            f"--user-data-dir={page.with_name('profile')}",
            f"--window-size={WINDOW[0]},{WINDOW[1]}",
            f"--screenshot={picture}",
            page.as_uri(),
        ]
    )
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    between = (pixels == pixels[-1, 0]).all(axis=(1, 2)).nonzero()[0]
    Image.fromarray(pixels[: between[-1] + 1]).save(picture)
    return picture


def compressed(path: Path, suffix: str) -> bytes:
    """A picture as JPEG, or as PNG, with 256 colours if it would be too large with all of them."""
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    content = io.BytesIO()
    if suffix == ".jpg":
        pixels.save(content, "JPEG", quality=80, optimize=True, progressive=True)
        return content.getvalue()
    pixels.save(content, "PNG", optimize=True)
    if content.tell() > LIMIT:
        content = io.BytesIO()
        pixels.quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    return content.getvalue()


if __name__ == "__main__":
    sys.exit(main())
