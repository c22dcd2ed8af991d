"""Forks of one process that has imported the package do what processes of their own do."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mokd_det.checkpoint import load_file
from mokd_det.experiments import fork_server, run_queue
from mokd_det.experiments.training_runs import child_environment

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart_classification" / "kd.py"


@pytest.fixture(scope="module")
def server():
    started = fork_server.ForkServer(child_environment({"MARK": "of the server"}))
    yield started
    started.close()


def test_statuses_and_consoles(server, tmp_path):
    commands = {"help": ["--help"], "unknown": ["fly"], "usage": ["train", "--no-such"]}
    forks = {name: server.start(arguments, tmp_path / name) for name, arguments in commands.items()}
    assert {name: fork.wait(60) for name, fork in forks.items()} == {"help": 0, "unknown": 2, "usage": 2}
    assert "commands: analyze" in (tmp_path / "help").read_text()
    assert "unknown command 'fly'" in (tmp_path / "unknown").read_text()
    assert "arguments are required: --config-file" in (tmp_path / "usage").read_text()


def test_a_fork_leads_a_group_and_says_what_ended_it(server, tmp_path):
    began = tmp_path / "began"
    (tmp_path / "slow.py").write_text(
        f"import os, time\nopen({str(began)!r}, 'w').write(os.environ['MARK'])\ntime.sleep(60)"
    )
    fork = server.start(
        ["train", "--config-file", str(tmp_path / "slow.py"), "--dry-run"], tmp_path / "console"
    )
    while not began.exists() or not began.read_text():
        time.sleep(0.02)
    assert began.read_text() == "of the server" and fork.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        fork.wait(0.0)
    os.killpg(fork.pid, signal.SIGKILL)
    assert fork.wait(10) == -signal.SIGKILL


@pytest.mark.slow
def test_a_training_in_a_fork_is_equal_to_the_last_digit(tmp_path):
    common = ["train.max_iter=12", "train.eval_period=12", "train.device=cpu", "model.teacher_checkpoint="]

    def job(name: str) -> run_queue.Job:
        command = [sys.executable, "-m", "mokd_det", "train", "--config-file", str(CONFIG), *common]
        return run_queue.Job(
            name, [*command, f"train.output_dir={tmp_path / name}"], tmp_path / f"{name}.txt"
        )

    for name, fork in (("process", False), ("fork", True)):
        run_queue.RunQueue([job(name)], 1, child_environment(), stream=io.StringIO(), fork=fork).run()
    one, two = (load_file(tmp_path / name / "student_final.pth") for name in ("process", "fork"))
    one, two = (found.get("model", found) for found in (one, two))
    assert one.keys() == two.keys()
    assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(two[key])) for key in one)
