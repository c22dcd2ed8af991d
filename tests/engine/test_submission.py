"""Jobs by submitit: on this machine where it takes no SLURM, and what is refused before anything is queued."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mokd_det.engine.submission import SubmittedTraining, submit
from mokd_det.errors import ConfigError
from mokd_det.tools import submit as submit_tool
from tests.engine.test_train_net import CONFIG, ROOT

# Ends with status 143 on SIGTERM, as a training that was stopped in order.
STOPPABLE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
pathlib.Path(sys.argv[1]).write_text("running")
time.sleep(120)
"""


def test_notice_of_the_end_stops_the_training_in_order_and_gives_the_same_job(tmp_path):
    training = SubmittedTraining([sys.executable, "-c", STOPPABLE, str(tmp_path / "mark")], tmp_path)
    training._process = subprocess.Popen(training.command, cwd=training.folder)
    deadline = time.monotonic() + 60
    while not (tmp_path / "mark").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    again = training.checkpoint()
    assert training._process.returncode == 143
    assert (again.function.command, again.function.folder) == (training.command, training.folder)
    # A second notice finds nothing to stop.
    training.checkpoint()


def test_a_task_can_be_sent_while_it_runs(tmp_path):
    training = SubmittedTraining(["true"], tmp_path)
    training._process = subprocess.Popen(["true"])
    training._process.wait()
    copy = pickle.loads(pickle.dumps(training))
    assert (copy.command, copy.folder, copy._process) == (["true"], str(tmp_path), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "--config-file", str(CONFIG), "train.max_itr=3"], "unknown config key 'train.max_itr'"),
        (["--", "--config-file", str(CONFIG), "--num-gpus", "2"], "take --gpus and --nodes before --"),
        (
            ["--slurm", "partition", "--", "--config-file", str(CONFIG)],
            "--slurm partition: must be KEY=VALUE",
        ),
        (["--", "--config-file", str(CONFIG)], "the job cannot be submitted: .*srun"),
        (
            ["--local", "--nodes", "2", "--", "--config-file", str(CONFIG)],
            "the job cannot be submitted: .*node",
        ),
    ],
)
def test_what_is_refused(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert submit_tool.main(["--logs", str(tmp_path / "logs"), *arguments]) == 2
    assert re.match(f"error: .*{message}", capsys.readouterr().err)


def test_without_submitit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match="needs the package submitit: pip install submitit"):
        submit(
            SubmittedTraining(["true"], tmp_path),
            tmp_path,
            cluster="local",
            nodes=1,
            tasks_per_node=1,
            minutes=1,
        )


def run_submit(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(ROOT / "tools" / "submit.py"),
        "--logs",
        str(tmp_path / "logs"),
        *arguments,
    ]
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_two_tasks_on_this_machine_train_together(tmp_path):
    training = ["--config-file", str(CONFIG), f"train.output_dir={tmp_path / 'run'}"]
    done = run_submit(tmp_path, "--local", "--gpus", "2", "--wait", "--", *training)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "student_final.pth").exists()
    assert (tmp_path / "run" / "log.txt.rank1").exists()


@pytest.mark.slow
def test_a_failed_training_is_told(tmp_path):
    training = ["--config-file", str(CONFIG), f"train.output_dir={tmp_path / 'run'}"]
    done = run_submit(tmp_path, "--local", "--wait", "--", *training, "train.init_checkpoint=gone.pth")
    assert done.returncode == 2
    assert "error: job " in done.stderr and "_log.err" in done.stderr
    logs = "".join(file.read_text() for file in (tmp_path / "logs").glob("*_0_log.err"))
    assert "gone.pth" in logs and "ended with status 2" in logs
