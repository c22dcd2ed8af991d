"""Processes that torchrun or SLURM has started: joined, not started again."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mokd_det.checkpoint import load_file
from mokd_det.engine import launch as launch_function
from mokd_det.engine.launch import EXIT_USER_ERROR
from mokd_det.engine.torchrun import RankInfo, rank_info_from_environment
from mokd_det.errors import ConfigError
from tests.engine.helpers import differences
from tests.engine.test_train_net import CONFIG, ROOT, TOOL, run_tool

WORKER = Path(__file__).with_name("joined_worker.py")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WHOLE = dict(zip(VARIABLES, ("3", "4", "1", "2", "host", "29500"), strict=True))


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_rank_from_the_variables(monkeypatch):
    set_variables(monkeypatch, WHOLE)
    assert rank_info_from_environment() == RankInfo(3, 4, 1, 2)
    set_variables(monkeypatch, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    assert rank_info_from_environment() == RankInfo(0, 1, 0, 1)


@pytest.mark.parametrize(
    "left", [(), ("WORLD_SIZE",), ("RANK", "WORLD_SIZE"), ("MASTER_ADDR", "MASTER_PORT")]
)
def test_variables_of_something_else(monkeypatch, left):
    """Some schedulers set WORLD_SIZE and RANK to numbers of machines."""
    set_variables(monkeypatch, {name: WHOLE[name] for name in left})
    assert rank_info_from_environment() is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"RANK": "4"}, "RANK=4 WORLD_SIZE=4"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 LOCAL_WORLD_SIZE=2"),
        ({"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 fit no group"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE='four' is no number"),
        ({"LOCAL_WORLD_SIZE": None}, "but not LOCAL_WORLD_SIZE"),
        ({"MASTER_ADDR": None}, "but not MASTER_ADDR"),
        ({"MASTER_PORT": ""}, "but not MASTER_PORT"),
    ],
)
def test_variables_that_fit_no_group(monkeypatch, change, named):
    variables = {name: value for name, value in {**WHOLE, **change}.items() if value is not None}
    set_variables(monkeypatch, variables)
    with pytest.raises(ConfigError, match=named):
        rank_info_from_environment()


@pytest.mark.parametrize(("num_processes", "num_machines"), [(3, 1), (4, 1), (2, 4)])
def test_processes_are_not_started_twice(monkeypatch, capsys, num_processes, num_machines):
    set_variables(monkeypatch, WHOLE)
    status = launch_function(lambda: 1 / 0, num_processes, num_machines=num_machines, dist_url="tcp://h:1")
    assert status == EXIT_USER_ERROR
    assert (
        f"--num-gpus {num_processes} --num-machines {num_machines}, but 4 processes"
        in capsys.readouterr().err
    )


def test_one_process_of_torchrun_runs_in_place(monkeypatch):
    set_variables(monkeypatch, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    seen = []
    assert launch_function(seen.append, args=(3,)) == 0 and seen == [3]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)


def test_two_processes_by_torchrun(tmp_path):
    done = run(torchrun("--standalone", "--nproc-per-node=2", str(WORKER), "sum", str(tmp_path)))
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert seen == {"world": 2, "local": rank, "sum": 3.0}


@pytest.mark.slow
def test_a_mistake_is_told_once(tmp_path):
    done = run(torchrun("--standalone", "--nproc-per-node=2", str(WORKER), "mistake", str(tmp_path)))
    # torchrun has one status for whatever fails.
    assert done.returncode == 1
    assert done.stderr.count("error: image 7 cannot be decoded\n") == 1
    assert "ZeroDivision" not in done.stderr and re.search(r"exitcode *: 2 ", done.stderr)


@pytest.mark.slow
def test_a_bug_of_one_rank_is_told_once(tmp_path):
    done = run(torchrun("--standalone", "--nproc-per-node=2", str(WORKER), "bug", str(tmp_path)))
    assert done.returncode == 1
    assert done.stderr.count(" failed:\nTraceback") == 1


@pytest.mark.slow
def test_two_machines_by_torchrun(tmp_path):
    """Both are this one."""
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    both = [
        subprocess.Popen(
            torchrun(*meeting, f"--node-rank={rank}", str(WORKER), "sum", str(tmp_path)), env=environment()
        )
        for rank in range(2)
    ]
    assert [process.wait(240) for process in both] == [0, 0]
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert seen == [{"world": 2, "local": 0, "sum": 3.0}] * 2


@pytest.fixture(scope="module")
def by_our_launcher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    done = run_tool(folder, "--num-gpus", "2")
    assert done.returncode == 0, done.stderr
    return folder


def assert_same_training(folder: Path, other: Path) -> None:
    one, two = (load_file(place / "model_final.pth") for place in (folder, other))
    assert differences(one["model"], two["model"]) == []


@pytest.mark.slow
def test_a_training_by_torchrun_equals_one_by_our_launcher(tmp_path, by_our_launcher):
    training = [str(TOOL), "--config-file", str(CONFIG), f"train.output_dir={tmp_path}"]
    done = run(torchrun("--standalone", "--nproc-per-node=2", *training))
    assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path, by_our_launcher)


@pytest.mark.slow
def test_two_machines_by_our_launcher(tmp_path, by_our_launcher):
    """Both are this one, with one process each; the first writes the run."""
    meeting = ["--num-machines=2", f"--dist-url=tcp://127.0.0.1:{free_port()}"]
    both = [
        subprocess.Popen(
            [
                *(sys.executable, str(TOOL), "--config-file", str(CONFIG)),
                *(*meeting, f"--machine-rank={rank}", f"train.output_dir={tmp_path}"),
            ],
            env=environment(),
        )
        for rank in range(2)
    ]
    assert [process.wait(240) for process in both] == [0, 0]
    assert_same_training(tmp_path, by_our_launcher)


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_a_resume_continues(tmp_path):
    training = [str(TOOL), "--config-file", str(CONFIG), f"train.output_dir={tmp_path}"]
    endless = [*training, "train.max_iter=100000", "train.checkpointer.period=100000", "train.eval_period=0"]
    command = torchrun("--standalone", "--nproc-per-node=2", *endless)
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 200
        while not (tmp_path / "metrics.json").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[1]
    stopped = re.findall(r"SIGTERM: stopped after iteration (\d+)", said)
    assert len(stopped) == 1, said
    assert (tmp_path / "last_checkpoint").exists()
    length = int(stopped[0]) + 5
    more = [*training, f"train.max_iter={length}", "train.eval_period=0", "--resume"]
    done = run(torchrun("--standalone", "--nproc-per-node=2", *more))
    assert done.returncode == 0, done.stderr
    assert load_file(tmp_path / "model_final.pth")["iteration"] == length - 1
