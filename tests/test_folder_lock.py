"""One folder, one writer: who is refused, what is said, and when the folder is free again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mokd_det.errors import ConfigError
from mokd_det.folder_lock import lock_folder, locked_folder, unlock_folder

HOLD = """
import os, sys, time
from mokd_det.folder_lock import lock_folder
sys.argv[0] = "python -m mokd_det tide"
lock_folder(sys.argv[1], "--output")
if sys.argv[2] == "forks":
    if os.fork() == 0:
        time.sleep(60)
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path, how: str = "alone") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_and_named(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(ConfigError) as caught:
        lock_folder(tmp_path, "train.output_dir")
    said = str(caught.value)
    assert re.match(
        rf"train\.output_dir '{re.escape(str(tmp_path))}' is in use by process {process.pid} on \S+ since ",
        said,
    )
    assert (
        f"(python -m mokd_det tide {tmp_path} alone); give another folder, or wait for it to end" in said
        and "\n" not in said
    )
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_the_lock_of_a_killed_process_blocks_nobody(tmp_path: Path, how: str) -> None:
    """Not even while a process that it had forked, as loaders do, lives on."""
    process = holder(tmp_path, how)
    process.kill()
    process.wait()
    assert (tmp_path / ".lock").exists()
    # The forked process gives the lock up when it first runs, which on a busy machine may be after its parent's end.
    deadline = time.monotonic() + 20
    while True:
        try:
            with locked_folder(tmp_path, "--output") as descriptor:
                assert descriptor > 0
            break
        except ConfigError:
            assert how == "forks" and time.monotonic() < deadline
            time.sleep(0.1)
    assert not (tmp_path / ".lock").exists()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        assert how == "alone"


def test_a_lock_that_was_handed_on_lasts_as_long_as_the_child(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from mokd_det.folder_lock import lock_folder\n"
        "lock = lock_folder(sys.argv[1], '--output')\n"
        "print(subprocess.Popen(['sleep', '60'], pass_fds=[lock], stdout=subprocess.DEVNULL).pid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True
    )
    with pytest.raises(ConfigError, match="is in use by a process that was left running by process"):
        lock_folder(tmp_path, "--output")
    os.kill(int(done.stdout), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while True:
        try:
            lock_folder(tmp_path, "--output")
            break
        except ConfigError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    unlock_folder(tmp_path)


def test_one_process_may_ask_twice_but_not_nest(tmp_path: Path) -> None:
    assert lock_folder(tmp_path, "a") == lock_folder(tmp_path / ".", "a")
    with pytest.raises(ConfigError, match="this one"), locked_folder(tmp_path, "a"):
        pass
    unlock_folder(tmp_path)
    unlock_folder(tmp_path)
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="cannot be made: File exists"),
        locked_folder(tmp_path / "file", "a"),
    ):
        pass
