from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from mokd_det.engine import launch as launch_function
from mokd_det.engine.launch import (
    EXIT_BUG,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    _Outcome,
    _report,
    _write_report,
)
from mokd_det.errors import ConfigError
from tests.engine import launch_workers
from tests.forks import launch


def fail(error: Exception) -> None:
    raise error


def test_one_process_runs_in_place(capsys):
    seen = []
    assert launch_function(seen.append, args=(3,)) == 0
    assert seen == [3]
    assert launch_function(fail, args=(ConfigError("train.x is wrong"),)) == EXIT_USER_ERROR
    assert capsys.readouterr().err == "error: train.x is wrong\n"
    assert launch_function(fail, args=(ZeroDivisionError("a bug"),)) == EXIT_BUG
    captured = capsys.readouterr().err
    assert "Traceback" in captured
    assert "a bug" in captured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_processes": 0}, "--num-gpus 0"),
        ({"num_machines": 2, "machine_rank": 2}, "--machine-rank 2 must be between 0 and 1"),
        ({"num_machines": 2}, "several machines need --dist-url"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert launch_function(fail, args=(AssertionError("must not run"),), **arguments) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err


def test_a_failing_rank_ends_the_others_and_speaks_once(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    start = time.monotonic()
    status = launch_function(
        launch_workers.fail_while_the_partner_waits, 2, args=(str(tmp_path),), grace_seconds=1.0
    )
    assert status == EXIT_USER_ERROR
    assert time.monotonic() - start < 200.0
    assert capfd.readouterr().err.count("error: image 7 cannot be decoded\n") == 1
    assert "OMP_NUM_THREADS" not in os.environ
    cores = len(os.sched_getaffinity(0))
    for rank in range(2):
        threads, local_rank, world_size, pid = map(int, (tmp_path / f"rank{rank}").read_text().split())
        assert (threads, local_rank, world_size) == (max(1, cores // 2), rank, 2)
        assert not Path(f"/proc/{pid}").exists(), "no process may be left"


def test_a_killed_rank_ends_the_others_and_is_named(capfd):
    start = time.monotonic()
    assert launch(launch_workers.die_without_a_word, 2, grace_seconds=0.5) == EXIT_BUG
    assert time.monotonic() - start < 200.0
    message = capfd.readouterr().err
    assert "the process of rank 0 was ended by signal SIGKILL (often: out of memory)" in message


def test_the_users_error_is_reported_before_its_consequences(tmp_path, capsys):
    _write_report(tmp_path, 0, _Outcome(EXIT_BUG, "Traceback: connection closed by peer"))
    _write_report(tmp_path, 1, _Outcome(EXIT_USER_ERROR, "image 7 cannot be decoded"))
    assert _report(SimpleNamespace(name="rank 0", exitcode=1), tmp_path).tell() == EXIT_USER_ERROR
    assert capsys.readouterr().err == "error: image 7 cannot be decoded\n"


def test_a_killed_rank_is_named_even_if_its_partner_reported_first(tmp_path, capsys):
    _write_report(tmp_path, 1, _Outcome(EXIT_BUG, "Traceback: connection closed by peer"))
    assert _report(SimpleNamespace(name="rank 0", exitcode=-9), tmp_path).tell() == EXIT_BUG
    assert "rank 0 was ended by signal SIGKILL" in capsys.readouterr().err


def test_a_bug_is_reported_with_its_traceback(tmp_path, capsys):
    _write_report(tmp_path, 1, _Outcome(EXIT_BUG, "Traceback: first"))
    _write_report(tmp_path, 0, _Outcome(EXIT_BUG, "Traceback: second"))
    assert _report(SimpleNamespace(name="rank 0", exitcode=1), tmp_path).tell() == EXIT_BUG
    message = capsys.readouterr().err
    assert "rank 1 failed" in message
    assert "first" in message
    assert "second" not in message


def test_a_rank_that_leaves_without_a_word_is_named_even_if_its_partner_reported(tmp_path, capsys):
    _write_report(tmp_path, 0, _Outcome(EXIT_BUG, "Traceback: connection closed by peer"))
    assert _report(SimpleNamespace(name="rank 1", exitcode=9), tmp_path).tell() == EXIT_BUG
    assert capsys.readouterr().err == (
        "error: the process of rank 1 was ended with status 9; all others were ended too\n"
    )


def test_a_busy_address_is_one_line(capfd):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        # One machine of one process would not meet anybody, so two, of which the other never comes.
        assert launch(print, 1, num_machines=2, dist_url=url, timeout=timedelta(seconds=20)) == 2
    said = capfd.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert errors == [
        f"error: --dist-url {url}: another program uses this port on this machine; give another one"
    ]
    assert not any("Traceback" in line for line in said)


def test_the_end_that_sigterm_asked_for_is_no_failure(tmp_path, capsys):
    _write_report(tmp_path, 0, _Outcome(EXIT_STOPPED, "stopped after iteration 7; --resume continues"))
    assert _report(SimpleNamespace(name="rank 0", exitcode=EXIT_STOPPED), tmp_path).tell() == EXIT_STOPPED
    assert capsys.readouterr().err == "SIGTERM: stopped after iteration 7; --resume continues\n"
    _write_report(tmp_path, 1, _Outcome(EXIT_USER_ERROR, "image 7 cannot be decoded"))
    assert _report(SimpleNamespace(name="rank 1", exitcode=2), tmp_path).tell() == EXIT_USER_ERROR
