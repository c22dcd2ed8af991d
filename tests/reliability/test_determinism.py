"""Same seed, same machine: the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mokd_det.checkpoint import load_file
from mokd_det.data import digits
from tests.engine.helpers import differences
from tests.engine.test_train_net import CONFIG, ROOT, metrics
from tests.forks import environment, run

# Seconds of a step depend on the machine's mood, and so does what is derived from them.
TIMES = ("_time", "eta_seconds", "time")


def train(config: Path, output: Path, hash_seed: int | None, datasets: Path, *arguments: str) -> Path:
    """A process of its own, with another order of sets and hashes; None: a fork, with the order of this one."""
    variables = environment(DETECTRON2_DATASETS=datasets)
    command = [
        str(ROOT / "tools" / "train_net.py"),
        "--config-file",
        str(config),
        f"train.output_dir={output}",
    ]
    if hash_seed is None:
        done = run([sys.executable, *command, *arguments], env=variables, timeout=3000)
    else:
        variables["PYTHONHASHSEED"] = str(hash_seed)
        done = subprocess.run(
            [sys.executable, *command, *arguments],
            env=variables,
            capture_output=True,
            text=True,
            timeout=3000,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def assert_equal(first: Path, second: Path, iterations: int) -> None:
    one, other = (load_file(path / "model_final.pth") for path in (first, second))
    assert one["iteration"] == iterations - 1
    assert differences(one, other) == []
    curves = [
        [{key: value for key, value in line.items() if not key.endswith(TIMES)} for line in metrics(path)]
        for path in (first, second)
    ]
    assert curves[0] == curves[1]


def test_200_iterations_are_bit_equal(tmp_path):
    runs = [
        train(
            CONFIG,
            tmp_path / str(seed),
            seed,
            tmp_path,
            "train.max_iter=200",
            "train.eval_period=0",
            "train.log_period=1",
        )
        for seed in (1, None)
    ]
    assert_equal(*runs, iterations=200)


@pytest.mark.slow
def test_200_iterations_of_mokd_are_bit_equal(tmp_path):
    """A real student with a real teacher; the second run loads its data in two processes."""
    digits.generate("digits", tmp_path / "datasets", counts={"train": 64, "val": 4, "test": 4})
    arguments = ("train.max_iter=200", "train.eval_period=0", "dataloader.train.total_batch_size=4")
    teacher = train(
        ROOT / "configs" / "quickstart" / "teacher.py",
        tmp_path / "teacher",
        0,
        tmp_path / "datasets",
        *arguments,
        "train.max_iter=1",
    )
    arguments = (
        *arguments,
        f"model.teacher_checkpoint={teacher / 'student_final.pth'}",
        "train.log_period=1",
    )
    config = ROOT / "configs" / "quickstart" / "mokd.py"
    runs = [
        train(
            config,
            tmp_path / f"run{n}",
            n,
            tmp_path / "datasets",
            *arguments,
            f"dataloader.train.num_workers={n}",
        )
        for n in (0, 2)
    ]
    assert_equal(*runs, iterations=200)
