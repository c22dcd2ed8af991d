"""The queue of processes, and what is said of one that fails."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import time
from functools import partial

import pytest

from mokd_det.experiments import run_queue, training_runs

Job, RunQueue, ChildFailed = run_queue.Job, run_queue.RunQueue, run_queue.ChildFailed


@pytest.fixture
def job(tmp_path):
    def make(name: str, code: str = "pass", **options) -> Job:
        command = [sys.executable, "-S", "-E", "-c", code]
        return Job(name, command, tmp_path / f"{name}.txt", **options)

    return make


def run(jobs: list[Job], workers: int = 2, **options) -> str:
    stream = options.pop("stream", None) or io.StringIO()
    RunQueue(jobs, workers, dict(os.environ), stream=stream, **options).run()
    return stream.getvalue()


def test_jobs_run_side_by_side_but_after_what_they_need(job, tmp_path):
    wait = f"""
import pathlib, time
for i in range(400):
    if pathlib.Path({str(tmp_path / "b")!r}).exists():
        break
    time.sleep(.02)
else:
    raise SystemExit("b did not run beside a")
"""
    jobs = [
        job("a", wait),
        job("c", f"assert open({str(tmp_path / 'b')!r}).read() == 'b'", needs=["b"]),
        job("b", f"open({str(tmp_path / 'b')!r}, 'w').write('b')", after=lambda: "well"),
    ]
    with pytest.raises(ValueError, match="job 'c'"):
        run(jobs)
    text = run([jobs[0], jobs[2], jobs[1]])
    assert re.search(r"^b: done in 0:0\d, well$", text, re.MULTILINE)
    assert text.index("b: done") < text.index("c: done")


def test_what_is_done_is_not_run_again(job):
    jobs = [job("a", "raise SystemExit(1)", is_done=lambda: True), job("b", needs=["a"])]
    text = run(jobs, pass_fds=[-1])  # the lock of a file system that has none
    assert text.startswith("a: already there\n")
    assert "b: done" in text


def test_a_failure_ends_the_others_and_is_told_with_its_last_lines(job, capsys, tmp_path):
    pid = tmp_path / "pid"
    slow = job("slow", f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    code = f"import pathlib, time\nwhile not pathlib.Path({str(pid)!r}).exists(): time.sleep(.02)\n"
    code += "time.sleep(.1)\n"
    bad = job("bad", code + "print('\\n'.join(map(str, range(50))), flush=True)\nraise SystemExit(7)")
    with pytest.raises(ChildFailed) as caught:
        run([slow, bad])
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert training_runs.report_failure(caught.value) == 7
    said = capsys.readouterr().err
    assert "error: bad ended with status 7. Its last lines:\n  35\n" in said
    assert "  49\n" in said
    assert f"All of them: {tmp_path / 'bad.txt'}" in said


def test_a_child_that_was_killed_is_a_failure(job, capsys):
    with pytest.raises(ChildFailed) as caught:
        run([job("a", "import os\nos.kill(os.getpid(), 9)")])
    assert training_runs.report_failure(caught.value) == 1
    assert "ended by signal 9" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_children_first(job, tmp_path, request, number):
    pid = tmp_path / "pid"
    # A child that ignores SIGTERM is ended too.
    code = "import os, signal, time\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
    code += f"open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"

    def send() -> None:
        while not pid.exists() or not pid.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    # A shell that starts the tests in the background makes them ignore SIGINT.
    if number == signal.SIGINT:
        request.addfinalizer(
            partial(signal.signal, number, signal.signal(number, signal.default_int_handler))
        )
    threading.Thread(target=send, daemon=True).start()
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), run_queue.interrupt_on_signals():
        run([job("a", code)])
    assert signal.getsignal(number) == handler
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_progress_without_a_terminal_is_whole_lines_with_an_estimate(job, tmp_path):
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"iteration": 99}\n')
    os.utime(metrics, (0, 0))  # of an earlier run: no progress of this one
    code = f"""
import time
for i in range(5):
    time.sleep(.25)
    with open({str(metrics)!r}, "a") as file:
        file.write('{{"iteration": %d}}\\n' % (i * 25))
"""
    jobs = [
        job("a", code, iterations=101, metrics=metrics, expected_seconds=1.0),
        job("b", needs=["a"], expected_seconds=60),
    ]
    lines = run(jobs, interval=0.3).splitlines()
    assert re.fullmatch(r"\[0:00, about 1:01 left\] a 0/101 \| 1 waiting", lines[0])
    assert any(
        re.fullmatch(r"\[0:0\d, about \d+:\d\d left\] a (26|51|76)/101 \| 1 waiting", line)
        for line in lines[1:]
    )


def test_the_estimate_plays_the_queue_through(job):
    jobs = [
        job("teacher", expected_seconds=300),
        job("alone", expected_seconds=100),
        job("mokd", expected_seconds=200, needs=["teacher"]),
        job("test", expected_seconds=10, needs=["mokd"]),
    ]
    assert RunQueue(jobs, 2, {}).remaining_seconds() == 510
    assert RunQueue(jobs, 1, {}).remaining_seconds() == 610


def test_on_a_terminal_one_line_is_written_over(job):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    text = run([job("a", "import time\ntime.sleep(.7)", expected_seconds=5)], stream=Terminal())
    first, *later = text.split("\r")
    assert first == ""
    assert all("\n" not in part for part in later[:-1])
    assert later[-1].startswith("a: done in 0:01\n")


def test_clock():
    assert [run_queue.clock(s) for s in (0.4, 59.6, 61, 3599.5, 7325)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "2:02:05",
    ]


def test_an_interrupted_command_says_how_it_is_continued(tmp_path, monkeypatch, capsys):
    def interrupted(lock):
        raise KeyboardInterrupt

    for program, typed in (
        ("tools/compare_methods.py", "python tools/compare_methods.py"),
        ("python -m mokd_det compare", "python -m mokd_det compare"),
    ):
        monkeypatch.setattr(sys, "argv", [program])
        assert training_runs.run_command(interrupted, tmp_path, ["--output", "a b"]) == 130
        assert f"\n  {typed} --output 'a b'\n" in capsys.readouterr().err
