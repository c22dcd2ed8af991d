"""The main job through the tool and the quick-start configs: a real ViDT student learns from a real ViDT teacher."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from mokd_det.checkpoint import load_file
from mokd_det.config import load_config
from mokd_det.data import digits
from tests.forks import Program, environment

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "configs" / "quickstart" / "teacher.py"
STUDENT = ROOT / "configs" / "quickstart" / "student.py"
MOKD = ROOT / "configs" / "quickstart" / "mokd.py"
SHORT = (
    "train.checkpointer.period=2",
    "train.log_period=1",
    "train.diagnostics_period=2",
    "train.eval_period=0",
)


class Workshop:
    """A folder with a little data and a teacher, in which the tool is run as a user runs it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        digits.generate("digits", root / "datasets", counts={"train": 48, "val": 6, "test": 6})

    def start(self, config: Path, output: str, *overrides: str, fresh: bool = False) -> Program:
        """A fork, or a process that imports everything itself."""
        tool = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", str(config)]
        return (partial(subprocess.Popen, text=True) if fresh else Program)(
            [*tool, f"train.output_dir={self.root / output}", *overrides],
            env=environment(DETECTRON2_DATASETS=self.root / "datasets"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, config: Path, output: str, *overrides: str, fresh: bool = False) -> Path:
        process = self.start(config, output, *overrides, fresh=fresh)
        text = process.communicate(timeout=240)[0]
        assert process.returncode == 0, text[-3000:]
        return self.root / output


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("main_job"))


@pytest.fixture(scope="module")
def teacher(workshop: Workshop) -> Path:
    return workshop.run(TEACHER, "teacher", "train.max_iter=2", *SHORT, fresh=True) / "student_final.pth"


@pytest.fixture(scope="module")
def distilled(workshop: Workshop, teacher: Path) -> Path:
    return workshop.run(MOKD, "mokd", "train.max_iter=6", f"model.teacher_checkpoint={teacher}", *SHORT)


def test_everything_is_logged(distilled: Path) -> None:
    lines = [json.loads(line) for line in (distilled / "metrics.json").read_text().splitlines()]
    steps = [line for line in lines if "total_loss" in line]
    assert [line["iteration"] for line in steps] == list(range(6))
    kinds = ("loss_ce", "loss_bbox", "loss_giou")
    wanted = {f"{kind}{level}" for kind in kinds for level in ("", "_0", "_1")}
    wanted |= {f"loss_distill_{tap}" for tap in ("patch", "neck", "head")}
    wanted |= {"pi/distill", "pi/task", "raw_weight/task", "grad_norm", "lr", "eta_seconds"}
    wanted |= {f"{part}_time" for part in ("data", "teacher", "student", "balance")}
    assert wanted <= set(steps[-1])
    for line in steps:
        assert line["pi/distill"] + line["pi/task"] == pytest.approx(1.0)
        assert line["raw_weight/distill"] + line["raw_weight/task"] == pytest.approx(1.0)
    assert steps[0]["pi/distill"] == 0.5 and steps[-1]["pi/distill"] != 0.5
    assert any(key.startswith("distill/") for line in lines for key in line)
    assert any("bbox/AP" in line for line in lines), "the last model is evaluated"
    assert list(distilled.glob("events.out.tfevents.*"))


def test_the_saved_student_is_one_that_was_never_distilled(distilled: Path) -> None:
    """Same keys, shapes and count as the student of its own config, in the final file and in every checkpoint."""
    alone = instantiate(load_config(str(STUDENT), []).model)
    expected = {key: value.shape for key, value in alone.state_dict().items()}
    for name in ("student_final.pth", "model_final.pth", "model_0000003.pth"):
        weights = load_file(distilled / name)["model"]
        assert {key: value.shape for key, value in weights.items()} == expected
    assert set(load_file(distilled / "student_final.pth")) == {"model"}
    alone.load_state_dict(weights)


def test_the_students_own_config_evaluates_it(workshop: Workshop, distilled: Path) -> None:
    out = workshop.run(
        STUDENT, "eval", "--eval-only", f"train.init_checkpoint={distilled / 'student_final.pth'}"
    )
    results = json.loads((out / "results.json").read_text())["bbox"]
    lines = [json.loads(line) for line in (distilled / "metrics.json").read_text().splitlines()]
    during = next(line["bbox/AP"] for line in reversed(lines) if "bbox/AP" in line)
    assert results["AP"] == pytest.approx(during, abs=1e-9)


def test_killed_and_resumed_equals_uninterrupted(workshop: Workshop, teacher: Path, distilled: Path) -> None:
    arguments = ("train.max_iter=6", f"model.teacher_checkpoint={teacher}", *SHORT)
    process = workshop.start(MOKD, "killed", *arguments)
    first = workshop.root / "killed" / "last_checkpoint"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert first.exists() and not (workshop.root / "killed" / "student_final.pth").exists()
    resumed = workshop.run(MOKD, "killed", "--resume", *arguments)
    ours, theirs = (load_file(path / "model_final.pth") for path in (resumed, distilled))
    assert_equal(ours, theirs, "")


def assert_equal(ours: object, theirs: object, path: str) -> None:
    """Bit-equality of nested checkpoints, wall-clock free: nothing in them may depend on time."""
    assert type(ours) is type(theirs), path
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), path
        for index, (one, other) in enumerate(zip(ours, theirs)):
            assert_equal(one, other, f"{path}/{index}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), path
    else:
        assert ours == theirs, path


def test_two_processes_distil(workshop: Workshop, teacher: Path) -> None:
    """Several processes on a CPU take the same path as several GPUs; π is computed from all of them."""
    given = ("--num-gpus", "2", "train.max_iter=2", f"model.teacher_checkpoint={teacher}", *SHORT)
    out = workshop.run(MOKD, "two", *given, fresh=True)
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "pi/distill" in line] == [0, 1]
    assert (out / "student_final.pth").is_file()


def test_a_teacher_of_another_size_is_refused_before_training(workshop: Workshop, distilled: Path) -> None:
    wrong = distilled / "student_final.pth"
    process = workshop.start(MOKD, "wrong", "train.max_iter=2", f"model.teacher_checkpoint={wrong}", *SHORT)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert (
        len(errors) == 1
        and str(wrong) in errors[0]
        and "16 channels" in errors[0]
        and "32 channels" in errors[0]
    )
    assert not list((workshop.root / "wrong").glob("*.pth"))
