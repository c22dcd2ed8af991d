"""The pages' commands and code, run as they are printed, in order, where :mod:`tests.documentation.place` has put what
the pages presume. All pages share one place; a command that was run for one page is not run again for another."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mokd_det.checkpoint import load_into, official_weights, write_file
from mokd_det.data.digits import annotation_file
from mokd_det.errors import CheckpointError
from mokd_det.experiments import quickstart
from mokd_det.experiments.quickstart_tasks import Detection
from mokd_det.model_zoo import RECORDS
from tests.checkpoint.published import detector
from tests.documentation import kinds
from tests.documentation.pages import PAGES, ROOT, Block, blocks, commands
from tests.documentation.parsing import recipe, tool_of
from tests.documentation.place import COUNTS, catalogs_restored, make_place, shortened, status
from tests.engine.helpers import loggers_restored

TUTORIALS = [
    f"docs/tutorials/{name}.md" for name in ("own_data", "your_teacher", "compare_methods", "read_a_report")
]
# What a page says was run before, on another page.
BEFORE = {
    "docs/tools.md": ["python datasets/make_digits.py digits"],
    "docs/methods.md": [
        "python datasets/make_digits.py digits",
        "python tools/train_net.py --config-file configs/quickstart/teacher.py",
    ],
}
# Page → files below output that it says are there afterwards.
PROMISED = {
    TUTORIALS[0]: ("check/contact_sheet.png", "student/student_final.pth", "tide/tide.md", "student.onnx"),
    TUTORIALS[1]: ("dynamics.png",),
    TUTORIALS[2]: ("compare/comparison.md", "compare/comparison.png"),
    TUTORIALS[3]: ("report.html", "both.html"),
    "docs/tools.md": (
        "demo/results.md",
        "demo/curves.png",
        "paper/paper.md",
        "attention",
        "found/images.json",
    ),
}
Prepare = Callable[[Path, dict[str, Any]], None]

pytestmark = pytest.mark.slow


def prepare_checkpoints(folder: Path, names: dict[str, Any]) -> None:
    """An official file of ViDT-tiny, one with objects, and a model."""
    official = official_weights(
        {"model": detector("tiny", num_classes=91).state_dict()}, "made", keep_rows="all"
    )
    torch.save({"model": official, "epoch": 149}, folder / "vidt_tiny_150.pth")
    weights = detector("nano").state_dict()
    torch.save({"model": weights, "args": argparse.Namespace(lr=1e-4)}, folder / "theirs.pth")
    write_file(official, folder / "vidt_tiny.pth")
    (folder / "output").mkdir(exist_ok=True)
    torch.save(
        {"model": detector("nano").state_dict(), "iteration": 1}, folder / "output" / "model_final.pth"
    )
    names["model"] = detector("tiny", num_classes=91)
    (block,) = (block for block in blocks("docs/checkpoints.md") if block.language == "text")
    with pytest.raises(CheckpointError) as error:
        load_into(detector("nano"), "vidt_tiny.pth")
    assert shows(block.text.removeprefix("error: "), str(error.value))


def prepare_tools(folder: Path, names: dict[str, Any]) -> None:
    """Detections of another program."""
    truth = folder / "instances_val.json"
    shutil.copy(annotation_file(folder / "datasets" / "digits", "test"), truth)
    first = json.loads(truth.read_text())["annotations"][0]
    box = {key: first[key] for key in ("image_id", "category_id", "bbox")}
    (folder / "a.json").write_text(json.dumps([{**box, "score": 0.5}]))
    (folder / "b.json").write_text("[]")


def prepare_comparing(folder: Path, names: dict[str, Any]) -> None:
    """Records of two machines: the committed ones, one half each."""
    for file in (RECORDS / "few_scenes").glob("*.json"):
        half = "ab"[json.loads(file.read_text())["replicate"] % 2]
        (folder / half / "records").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / half / "records")


def prepare_methods(folder: Path, names: dict[str, Any]) -> None:
    """Detectron2's file of weights."""
    (folder / "model_final.pkl").write_bytes(pickle.dumps({"model": {"weight": torch.ones(2).numpy()}}))


PREPARE: dict[str, Prepare] = {
    "docs/checkpoints.md": prepare_checkpoints,
    "docs/comparing.md": prepare_comparing,
    "docs/methods.md": prepare_methods,
    "docs/tools.md": prepare_tools,
}


def shows(block: str, said: str, *, other_numbers: bool = True) -> bool:
    """Whether a block is part of what was said; … stands for anything, and another run has other numbers."""
    pattern = re.escape(" ".join(block.split())).replace("…", ".*")
    if other_numbers:
        pattern = re.sub(r"\d+(\\\.\d+)?(e\\-\d+)?", r"[\\d.]+(e-\\d+)?", pattern)
    return re.search(pattern, " ".join(said.split()), flags=re.DOTALL) is not None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("place")
    make_place(folder)
    with pytest.MonkeyPatch.context() as patch, catalogs_restored():
        patch.delenv("DETECTRON2_DATASETS", raising=False)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setattr(Detection, "counts", COUNTS)
        patch.setattr(quickstart, "TIMED_IMAGES", 3)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def done() -> dict[str, str]:
    """Command as it was run → what it printed."""
    return {}


def run(words: list[str], done: dict[str, str]) -> str:
    """Run a command, unless it was run; returns what it printed."""
    if words[0] == "make":
        return "".join(run(command, done) for command in recipe(words))
    short = shortened(words)
    if (line := " ".join(short)) in done:
        return done[line]
    if "compare" in line and "--config" in short:
        # Two pages write comparisons of different configurations into one folder.
        shutil.rmtree(short[short.index("--output") + 1], ignore_errors=True)
    if tool_of(words) is None:
        command = [sys.executable, *short[1:]]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
        said, code = ran.stdout + ran.stderr, ran.returncode
    else:
        with (
            pytest.MonkeyPatch.context() as patch,
            loggers_restored(),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(out),
            pytest.raises(SystemExit) as ended,
        ):
            patch.setattr(sys, "argv", short[1:])
            if short[1] == "-m":
                patch.setattr(sys, "argv", ["mokd_det", *short[3:]])
                runpy.run_module("mokd_det", run_name="__main__")
            else:
                runpy.run_path(short[1], run_name="__main__")
        said, code = out.getvalue(), ended.value.code or 0
    assert code == status(words), f"{line}\n{said[-3000:]}"
    done[line] = said
    return said


@pytest.mark.parametrize("page", [*TUTORIALS, *(page for page in PAGES if page not in TUTORIALS)])
def test_page(page: str, place: Path, done: dict[str, str]) -> None:
    to_run = [block for block in blocks(page) if is_run(block)]
    if not to_run:
        pytest.skip("has nothing to run")
    names: dict[str, Any] = {}
    for line in BEFORE.get(page, []):
        run(line.split(), done)
    if page in PREPARE:
        PREPARE[page](place, names)
    said: list[tuple[str, str]] = []
    for block in to_run:
        kind = kinds.kind(block)
        if kind == "code":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.text, str(block), "exec"), names)
        elif kind == "printed":
            command = kinds.PRINTED_BY[block.first_line]
            outputs = [text for line, text in said if line.startswith(str(command))]
            exact = "--all-variants" in str(command)
            found = [shows(block.text, text, other_numbers=not exact) for text in outputs]
            assert any(found), f"{block}\n{outputs}"
        else:
            for words in commands(block.text):
                if kinds.reason_not_to_run(words) is None:
                    said.append((" ".join(words), run(words, done)))
    for file in PROMISED.get(page, ()):
        assert (place / "output" / file).exists(), file


def is_run(block: Block) -> bool:
    kind = kinds.kind(block)
    if kind == "commands":
        return any(kinds.reason_not_to_run(words) is None for words in commands(block.text))
    if kind == "printed":
        return kinds.PRINTED_BY[block.first_line] is not None
    return kind == "code" and block.page not in kinds.RUN_BY


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the notebook's packages are those of the extra docs")
def test_the_notebook_runs_from_top_to_bottom(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    # As in Jupyter, which asks for a backend that only its kernels have.
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(ROOT / "docs" / "tutorials" / "photographs_to_onnx.ipynb", as_version=4)
    notebook.cells[1].source = notebook.cells[1].source.replace("1500, 160", "2, 64")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(place)}}).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    assert (place / "output" / "notebook" / "student.onnx").stat().st_size > 0
