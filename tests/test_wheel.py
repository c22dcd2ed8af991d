"""The wheel alone: train, evaluate, look at errors, compare and export with packaged configs, far from any checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mokd_det.model_zoo import CONFIGS, RECORDS, WEIGHTS
from tests.config_room.test_own_data import CATEGORIES, DISTILLED, folder, paths

__all__ = ["folder"]  # the fixture with the data

ROOT = Path(__file__).parents[1]
CONFIG = "custom/mokd_vidt_nano.py"
TEACHER = "classes7.pth"
SHORT = [*DISTILLED, *paths(), "train.device=cpu", "train.max_iter=2", "train.eval_period=2"]
SHORT += [f"train.init_checkpoint={TEACHER}"]

Command = Callable[..., str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel and nothing else of this project."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "installed"))
    # A build leaves folders beside what it reads.
    for name in ("mokd_det", "configs", "docs/results/records"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", wheels], source)
    (wheel,) = wheels.glob("mokd_det-*.whl")
    _run([*pip, "install", "--no-deps", "--target", target, wheel], source)
    shutil.rmtree(source)
    return target


@pytest.fixture(scope="module")
def python(installed: Path, folder: Path) -> Command:
    """Runs this Python where the data is, with the installed package."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""}

    def run(*arguments: str, status: int = 0) -> str:
        return _run([sys.executable, *arguments], folder, environment, status)

    return run


def _run(command: list, cwd: Path, environment: dict[str, str] | None = None, status: int = 0) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == status, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def _files(folder: Path) -> set[str]:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if "__pycache__" not in name}


@pytest.mark.slow
def test_from_data_to_an_exported_student(python: Command, installed: Path, folder: Path) -> None:
    place = python("-c", "import mokd_det; print(mokd_det.__file__)").strip()
    assert Path(place).is_relative_to(installed)
    for checkout in (CONFIGS, RECORDS, WEIGHTS):
        packed = installed / "mokd_det" / "model_zoo" / checkout.name
        assert _files(packed) == _files(checkout), checkout
    (metadata,) = installed.glob("mokd_det-*.dist-info/METADATA")
    description = metadata.read_text("utf-8")
    assert "on [Detectron2](https://" in description and not re.findall(r"\]\((?!https:)[^)]*", description)

    def mokd_det(*arguments: str, status: int = 0) -> str:
        return python("-m", "mokd_det", *arguments, status=status)

    assert mokd_det("train", "--config-file", "custom/mokd_vidt_nan.py", status=2) == (
        f"error: config file 'custom/mokd_vidt_nan.py' does not exist; did you mean '{CONFIG}', which comes with "
        "mokd_det?\n"
    )
    teacher = f"model.teacher_checkpoint={TEACHER}"
    mokd_det("train", "--config-file", CONFIG, *SHORT, teacher, "train.output_dir=output/run")
    student = "output/run/student_final.pth"
    weights = f"train.init_checkpoint={student}"
    mokd_det("train", "--config-file", CONFIG, *SHORT, "--eval-only", weights, "train.output_dir=output/test")
    results = json.loads((folder / "output/test/results.json").read_text())["bbox"]
    assert {f"AP-{name}" for name in CATEGORIES.values()} <= set(results)

    mokd_det("tide", "--run", "output/run", "--output", "output/tide")
    mokd_det("report", "output/run", "--images", "2", "--output", "output/report.html")
    mokd_det(
        "export",
        *("output/student.safetensors", "output/student.onnx"),
        *("--config-file", CONFIG, "--weights", student, "--set", *SHORT),
    )
    mokd_det(
        "compare",
        *("--config", CONFIG, "--methods", "none", "mokd", "--replicates", "2", "--jobs", "1"),
        *("--methods-file", "common/methods.py", "--teacher", TEACHER, "--output", "output/compare"),
        *("--set", *SHORT),
    )
    assert len(list((folder / "output/compare/records").glob("*.json"))) == 4
    table = (folder / "output/compare/comparison.md").read_text()
    assert "python -m mokd_det compare" in table
    for made in ("tide/tide.md", "report.html", "student.safetensors", "student.onnx"):
        assert (folder / "output" / made).stat().st_size > 0, made
    # Nothing was left where the package is.
    assert not [path for path in installed.rglob("*") if path.name in ("output", "datasets")]
