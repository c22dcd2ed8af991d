"""The tool itself, on toy configurations of detection and of classification."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch

from mokd_det.checkpoint import load_file
from mokd_det.engine import argument_parser
from mokd_det.engine import launch as launch_function
from mokd_det.errors import CheckpointError, ConfigError
from mokd_det.tools.train_net import train
from tests.engine.helpers import differences, loggers_restored
from tests.forks import environment, launch
from tests.forks import run as run_forked

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "train_net.py"
CONFIG = Path(__file__).with_name("toy_config.py")
CLASSIFICATION = ROOT / "tests" / "classification" / "toy_config.py"
CONFIGS = {"detection": CONFIG, "classification": CLASSIFICATION}
DETERMINISTIC = {
    "detection": ("model.dropout=0.0", "model.norm=false"),
    # Keys have no gradient from their bias but rounding errors, which an unbounded AdamW would make full steps of.
    "classification": ("model.student.network.drop_path_rate=0.0", "optimizer.eps=1e-2"),
}


def run_here(output_dir: Path, *arguments: str, config: Path = CONFIG) -> None:
    parser = argument_parser("test")
    parsed = parser.parse_intermixed_args(
        ["--config-file", str(config), f"train.output_dir={output_dir}", *arguments]
    )
    with loggers_restored():
        train(parsed)


def run_tool(
    output_dir: Path, *arguments: str, config: Path = CONFIG, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The tool as a program, in a fork."""
    command = [sys.executable, str(TOOL), "--config-file", str(config), f"train.output_dir={output_dir}"]
    return run_forked([*command, *arguments], env=environment() if env is None else env)


def metrics(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.json").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("whole")
    run_here(output_dir)
    return output_dir


def test_a_run_leaves_what_it_should(whole_run):
    names = {item.name for item in whole_run.iterdir()}
    assert {
        "config.yaml",
        "environment.txt",
        "log.txt",
        "metrics.json",
        "model_final.pth",
        "student_final.pth",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert [line["iteration"] for line in metrics(whole_run)] == [1, 3, 5, 7, 9, 11, 12]
    trained = [line for line in metrics(whole_run) if "total_loss" in line]
    wanted = {
        "loss_ce",
        "loss_bbox",
        "loss_extra",
        "pi/cls",
        "pi/box",
        "lr",
        "grad_norm",
        "eta_seconds",
        "student_time",
    }
    assert wanted <= set(trained[-1])
    assert "bbox/AP" in metrics(whole_run)[2]
    assert "bbox/AP" in metrics(whole_run)[-1]
    log = (whole_run / "log.txt").read_text()
    assert "eta: " in log
    assert "bbox    AP" in log
    final = load_file(whole_run / "student_final.pth")
    assert list(final) == ["model"]
    assert differences(final["model"], load_file(whole_run / "model_final.pth")["model"]) == []


@pytest.fixture(scope="module")
def whole_classification_run(tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("whole_classification")
    run_here(output_dir, config=CLASSIFICATION)
    return output_dir


@pytest.mark.parametrize("task", CONFIGS)
def test_a_killed_run_resumes_bit_exactly(task, request, tmp_path):
    whole_run = request.getfixturevalue("whole_run" if task == "detection" else "whole_classification_run")
    kill_at = random.Random(os.urandom(4)).randrange(1, 12)
    killed = run_tool(tmp_path, f"dataloader.train.kill_at={kill_at}", config=CONFIGS[task])
    assert killed.returncode == -9, killed
    resumed = run_tool(tmp_path, "--resume", config=CONFIGS[task])
    assert resumed.returncode == 0, resumed
    first_checkpoint_exists = kill_at >= 3
    assert ("Resuming at iteration" in resumed.stdout + resumed.stderr) == first_checkpoint_exists, kill_at
    whole, parts = (load_file(path / "model_final.pth") for path in (whole_run, tmp_path))
    assert differences(whole, parts) == [], f"killed at {kill_at}"
    assert [line["iteration"] for line in metrics(tmp_path)] == [1, 3, 5, 7, 9, 11, 12]
    rates, again = ([line.get("lr") for line in metrics(path)] for path in (whole_run, tmp_path))
    assert rates == again


@pytest.mark.parametrize("task", CONFIGS)
def test_two_processes_equal_one_with_the_same_batch(task, tmp_path):
    settings = (*DETERMINISTIC[task], "train.max_iter=6", "train.eval_period=0")
    run_here(tmp_path / "one", *settings, config=CONFIGS[task])
    assert launch(partial(run_here, config=CONFIGS[task]), 2, args=(tmp_path / "two", *settings)) == 0
    one, other = (load_file(tmp_path / name / "model_final.pth") for name in ("one", "two"))
    for name, value in one["model"].items():
        torch.testing.assert_close(other["model"][name], value, rtol=1e-6, atol=1e-6, msg=name)
    for first, second in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for key in first:
            if key.startswith(("loss", "pi/", "total_loss", "grad_norm")):
                assert second[key] == pytest.approx(first[key], rel=1e-5), key
    assert (tmp_path / "two" / "log.txt.rank1").exists()


def test_a_classification_run_leaves_the_averaged_student_too(whole_classification_run):
    final = load_file(whole_classification_run / "model_final.pth")
    student, averaged = (
        load_file(whole_classification_run / f"student_final{suffix}.pth") for suffix in ("", "_ema")
    )
    assert differences(final["model"], student["model"]) == []
    assert differences(final["ema"], averaged["model"]) == []
    assert list(student["model"]) == list(averaged["model"])
    assert differences(student["model"], averaged["model"])
    last = metrics(whole_classification_run)[-1]
    assert last["classification/top1"] != last["ema_classification/top1"]


def test_the_averaged_student_is_evaluated_as_any_other(whole_classification_run, tmp_path):
    file = whole_classification_run / "student_final_ema.pth"
    run_here(tmp_path, "--eval-only", f"train.init_checkpoint={file}", config=CLASSIFICATION)
    results = json.loads((tmp_path / "results.json").read_text())
    wanted = metrics(whole_classification_run)[-1]["ema_classification/top1"]
    assert results["classification"]["top1"] == pytest.approx(wanted, rel=1e-6)


def test_the_best_averaged_student(tmp_path):
    run_here(
        tmp_path,
        "train.best.metric=ema_classification/top1",
        "train.eval_period=3",
        "train.max_iter=3",
        config=CLASSIFICATION,
    )
    best, final = load_file(tmp_path / "best" / "model_best.pth"), load_file(tmp_path / "model_final.pth")
    assert differences(best["model"], final["ema"]) == []


def test_a_bad_loss_on_one_rank_stops_all_with_one_line(tmp_path, capfd):
    # Sample 7 is in the second half of batch 1: it is rank 1 that sees it.
    poison = "dataloader.train.poison={7: {loss_bbox: nan}}"
    assert launch(run_here, 2, args=(tmp_path, poison)) == 2
    captured = capfd.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert (
        "loss 'loss_bbox' is nan at iteration 1 on rank 1; images: id 6 'toy_6.png', id 7 'toy_7.png'"
        in errors[0]
    )
    assert "Traceback" not in captured.err + captured.out
    assert not list(tmp_path.glob("*.pth"))


def test_a_finished_run_can_be_resumed_and_evaluated(whole_run, tmp_path):
    run_here(tmp_path, "train.max_iter=3")
    before = load_file(tmp_path / "model_final.pth")
    run_here(tmp_path, "--resume", "train.max_iter=3")
    assert differences(before, load_file(tmp_path / "model_final.pth")) == []
    (tmp_path / "results.json").unlink(missing_ok=True)
    run_here(tmp_path, "--eval-only", "--resume")
    assert json.loads((tmp_path / "results.json").read_text())["bbox"]["AP"] is not None


def test_a_resume_with_other_settings_says_so(tmp_path, caplog):
    run_here(tmp_path, "train.max_iter=3", "train.eval_period=0")
    run_here(
        tmp_path, "--resume", "train.max_iter=5", "train.eval_period=0", "dataloader.train.total_batch_size=2"
    )
    log = (tmp_path / "log.txt").read_text()
    assert "train.max_iter was 3 and is now 5: this run goes on, but differs" in log
    assert "dataloader.train.total_batch_size was 4 and is now 2: this run goes on" in log
    run_here(
        tmp_path, "--resume", "train.max_iter=2", "train.eval_period=0", "dataloader.train.total_batch_size=2"
    )
    log = (tmp_path / "log.txt").read_text()
    assert (
        "model_final.pth has done 5 iterations, more than train.max_iter=2: nothing is left to train" in log
    )


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path):
    run_here(tmp_path, "train.max_iter=4", "train.eval_period=0")
    run_here(tmp_path, "train.max_iter=2", "train.eval_period=0")
    assert not (tmp_path / "model_0000002.pth").exists()
    assert (tmp_path / "previous_1" / "model_0000002.pth").exists()
    assert max(line["iteration"] for line in metrics(tmp_path)) == 2


def test_evaluation_only(whole_run, tmp_path):
    run_here(tmp_path, "--eval-only", f"train.init_checkpoint={whole_run / 'student_final.pth'}")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["bbox"]["AP"] == pytest.approx(metrics(whole_run)[-1]["bbox/AP"], rel=1e-6)
    assert results["bbox"]["APs"] is None
    with pytest.raises(ConfigError, match="--eval-only has nothing to evaluate"):
        run_here(tmp_path, "--eval-only")
    with pytest.raises(ConfigError, match="no checkpoint in"):
        run_here(tmp_path / "empty", "--eval-only", "--resume")
    with pytest.raises(
        CheckpointError, match=r"of another shape \(backbone\.weight \[8, 108\] instead of \[4, 108\]"
    ):
        run_here(
            tmp_path,
            "--eval-only",
            "model.width=4",
            f"train.init_checkpoint={whole_run / 'student_final.pth'}",
        )


def test_a_training_starts_from_given_weights(whole_run, tmp_path):
    run_here(
        tmp_path,
        f"train.init_checkpoint={whole_run / 'student_final.pth'}",
        "train.max_iter=1",
        "optimizer.lr=0.0",
        "train.eval_period=0",
    )
    given, found = (load_file(path / "student_final.pth")["model"] for path in (whole_run, tmp_path))
    assert all("norm.running" in path or "num_batches" in path for path in differences(given, found))


def test_the_best_model_of_a_run(tmp_path):
    run_here(tmp_path, "train.best.mode=max", "train.eval_period=3")
    record = json.loads((tmp_path / "best" / "best.json").read_text())
    assert record["value"] == max(line["bbox/AP"] for line in metrics(tmp_path) if "bbox/AP" in line)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_evaluation_needs_loader_and_evaluator(tmp_path):
    with pytest.raises(ConfigError, match=r"dataloader\.test is given without its partner"):
        run_here(tmp_path, "dataloader.evaluator=null")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.max_itr=3"], "error: unknown config key 'train.max_itr'; did you mean 'train.max_iter'?\n"),
        (["train.device=cuda"], "error: train.device is 'cuda', but this machine has no GPU"),
        (["train.init_checkpoint=none.pth"], "error: checkpoint 'none.pth' does not exist\n"),
        (["objectives.box=null"], "error: loss 'loss_bbox' matches no objective"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(arguments, message, tmp_path, capsys):
    if "cuda" in message and torch.cuda.is_available():
        arguments, message = ["train.device=gpu"], "error: train.device is 'gpu'"
    assert launch_function(run_here, args=(tmp_path, *arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines(keepends=True) if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith(message)
    assert not list(tmp_path.glob("*.pth"))
