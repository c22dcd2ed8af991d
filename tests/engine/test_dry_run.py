"""--dry-run: what it finds, that it finds all of it at once, and that it leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mokd_det.folder_lock import lock_folder, unlock_folder
from mokd_det.tools.train_net import main
from tests.engine.helpers import loggers_restored

ROOT = Path(__file__).parents[2]
TOY = str(Path(__file__).with_name("toy_config.py"))
STUDENT = str(ROOT / "configs" / "quickstart" / "student.py")


def test_a_good_run_is_measured_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert main(["--config-file", TOY, "--dry-run", f"train.output_dir={output}"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and list(tmp_path.iterdir()) == []
    assert "ToyDetector: 915 parameters" in said.out
    losses = {name: float(value) for name, value in re.findall(r"^(loss_\w+) +(\S+)$", said.out, re.M)}
    assert set(losses) == {"loss_ce", "loss_bbox", "loss_extra"} and min(losses.values()) > 0
    assert re.search(r"^seconds \S+ \(the first", said.out, re.M)
    assert "evaluation: about 0:00:00 for 3 batches, 2 times" in said.out
    assert "12 iterations: about 0:00:0" in said.out
    assert "3 x model_<iteration>.pth (every 3 iterations), model_final.pth" in said.out
    assert said.out.endswith("No error found; nothing was written.\n")


def test_a_run_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--config-file",
        TOY,
        f"train.output_dir={tmp_path}",
        "train.max_iter=3",
        "train.eval_period=0",
    ]
    with loggers_restored():
        assert main(arguments) == 0
    before = {item: item.read_bytes() for item in tmp_path.rglob("*") if item.is_file()}
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    assert "it holds a run, which would be set aside into a folder previous_<n>" in capsys.readouterr().out
    assert main([*arguments, "--dry-run", "--resume"]) == 0
    assert "continues from model_final.pth, iteration 3" in capsys.readouterr().out
    assert {item: item.read_bytes() for item in tmp_path.rglob("*") if item.is_file()} == before


def test_all_errors_come_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    arguments = [
        "--config-file", STUDENT, "--dry-run", "--num-gpus", "3",
        f"train.output_dir={tmp_path}/file/run",
        "train.init_checkpoint=none.pth",
        "dataloader.train.dataset=coco_2014_val",
        "dataloader.test.dataset=digits_vall",
    ]  # fmt: skip
    assert main(arguments) == 2
    said = capsys.readouterr()
    errors = said.err.splitlines()
    assert all(line.startswith("error: ") for line in errors)
    for part in (
        f"train.output_dir '{tmp_path}/file/run' cannot be made",
        "checkpoint 'none.pth' does not exist",
        "processes cannot share equally",
        "instances_val2014.json does not exist; download COCO",
        "unknown data set 'digits_vall'; did you mean 'digits_val'",
    ):
        assert sum(part in line for line in errors) == 1, part
    assert f"{len(errors)} errors; this would not train" in said.out and "Traceback" not in said.err


def test_a_folder_in_use_and_a_misfit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    assert (
        main(["--config-file", TOY, f"train.output_dir={other}", "train.max_iter=1", "train.eval_period=0"])
        == 0
    )
    weights = other / "student_final.pth"
    capsys.readouterr()
    arguments = ["--config-file", TOY, "--dry-run", f"train.output_dir={tmp_path}/run", "model.width=4"]
    assert main([*arguments, f"train.init_checkpoint={weights}"]) == 2
    assert "of another shape" in capsys.readouterr().err
    lock_folder(other, "test")
    try:
        # This process has it, and may ask again; what another one is told, tests/test_folder_lock.py shows.
        assert main(["--config-file", TOY, "--dry-run", "--eval-only", f"train.output_dir={other}"]) == 2
        assert "--dry-run is for trainings" in capsys.readouterr().err
    finally:
        unlock_folder(other)
