"""The tutorials' commands, run as they are printed, in the order of the pages, on generated pictures.

The only change: trainings are cut to a few steps of small images. ``datasets/fetch.py`` is not run here (its own
tests do that): where it would put the photographs, generated scenes lie in the same layout.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from mokd_det.data.digits import annotation_file, generate, image_folder
from tests.engine.helpers import loggers_restored

ROOT = Path(__file__).parents[1]
PAGES = ("own_data", "your_teacher", "compare_methods", "read_a_report")
SHORT = [
    "train.max_iter=2",
    "train.eval_period=0",
    "train.log_period=1",
    "data.total_batch_size=2",
    "dataloader.train.mapper.augmentation.short_sides=[64]",
    "dataloader.test.mapper.augmentation.short_side=64",
]


def commands(page: str) -> list[list[str]]:
    text = (ROOT / "docs" / "tutorials" / f"{page}.md").read_text("utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the checkout's tools and configs, and data as fetched."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("tools", "configs", "datasets"):
        (folder / name).symlink_to(ROOT / name)
    generate("digits", folder / "made", counts={"train": 8, "val": 4, "test": 4})
    target = folder / "data" / "bccd"
    (target / "images").mkdir(parents=True)
    for split in ("train", "val", "test"):
        content = json.loads(annotation_file(folder / "made" / "digits", split).read_text())
        for image in content["images"]:
            source = image_folder(folder / "made" / "digits", split) / image["file_name"]
            image["file_name"] = f"{split}_{image['file_name']}"
            shutil.copy(source, target / "images" / image["file_name"])
        (target / f"{split}.json").write_text(json.dumps(content))
    return folder


def run(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command[0] == "python" and command[1].startswith(("tools/", "datasets/")), command
    tool = Path(command[1]).name
    arguments = list(command[2:])
    if tool == "fetch.py":
        return
    if tool == "train_net.py":
        arguments += SHORT
    elif tool == "compare_methods.py":
        position = arguments.index("--set") + 1
        arguments[position:position] = [*SHORT, "train.eval_period=2"]
        arguments[arguments.index("--replicates") + 1] = "2"
    monkeypatch.setattr(sys, "argv", [command[1], *arguments])
    with loggers_restored(), pytest.raises(SystemExit) as ended:
        runpy.run_path(command[1], run_name="__main__")
    assert ended.value.code in (0, None), command


@pytest.mark.slow
def test_the_pages_run_one_after_the_other(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(place / "made"))
    monkeypatch.syspath_prepend(ROOT / "tools")
    for page in PAGES:
        for command in commands(page):
            run(command, monkeypatch)
    for made in (
        "check/contact_sheet.png",
        "student/student_final.pth",
        "tide/tide.md",
        "student.onnx",
        "dynamics.png",
        "compare/comparison.md",
        "report.html",
        "both.html",
    ):
        assert (place / "output" / made).stat().st_size > 0, made


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="the notebook's packages are those of the extra docs")
def test_the_notebook_runs_from_top_to_bottom(place, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    # As in Jupyter, which asks for a backend that only its kernels have.
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
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
