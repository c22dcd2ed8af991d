"""The command lines: the quick start end to end on next to nothing, its queue of processes, plot_dynamics."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from tests.tool_module import tool_module

TOOLS = Path(__file__).parents[2] / "tools"


run_queue = tool_module("run_queue")
training_runs = tool_module("training_runs")
quickstart = tool_module("quickstart")
plot_dynamics = tool_module("plot_dynamics")
Job, RunQueue, ChildFailed = run_queue.Job, run_queue.RunQueue, run_queue.ChildFailed


# The queue


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
    text = run([job("a", "raise SystemExit(1)", is_done=lambda: True), job("b", needs=["a"])])
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


# The quick start


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(output directory, arguments, what it printed) of a whole quick start."""
    output = tmp_path_factory.mktemp("quickstart") / "demo"
    arguments = [f"--output={output}", "--images=40", "--iterations=3", "--teacher-iterations=3"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(quickstart, "TIMED_IMAGES", 3)
        assert quickstart.main(arguments) == 0
    torch.set_num_threads(threads)
    return output, arguments, said.getvalue()


def test_quickstart_from_nothing_to_the_table_and_the_pictures(demo):
    output, _, said = demo
    content = json.loads((output / "results.json").read_text())
    assert [(r["model"], r["seed"], r["iterations"]) for r in content["runs"]] == [
        ("teacher", 0, 3),
        ("student", 0, 3),
        ("mokd", 0, 3),
    ]
    assert content["test_images"] == 6
    assert (
        content["parameters"]["student"] == content["parameters"]["mokd"] < content["parameters"]["teacher"]
    )
    assert all(0 < seconds < 10 for seconds in content["seconds_per_image"].values())
    table = (output / "results.md").read_text()
    assert table in said
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == ["model", "iterations", "AP", "AP50", "AP75", "parameters", "seconds per image"]
    assert [row[0] for row in rows[2:]] == ["teacher", "student alone", "student, MoKD"]
    assert rows[4][5] == f"{content['parameters']['mokd']:,}"
    assert "One pair of runs cannot tell a gain from chance" in table
    for name in ("predictions.png", "curves.png"):
        assert str(output / name) in said
        assert imread(output / name)[..., :3].std() > 0.05
    # the data of unusual size lie below the output and not among the user's own
    assert (output / "datasets" / "digits" / "manifest.json").is_file()
    assert "about" in said and "left" in said
    for run_name in ("teacher", "student_seed0", "mokd_seed0"):
        log = (output / "runs" / run_name / "console.txt").read_text()
        assert "CPU, 1 threads per process" in log or "GPU" in log
    test_log = (output / "runs" / "mokd_seed0" / "test" / "console.txt").read_text()
    assert "digits_test" in test_log


def test_a_second_quickstart_repeats_no_training(demo, capsys, monkeypatch):
    output, arguments, _ = demo
    monkeypatch.setattr(quickstart, "TIMED_IMAGES", 3)
    weights = output / "runs" / "mokd_seed0" / "student_final.pth"
    before = weights.stat().st_mtime_ns
    assert quickstart.main(arguments) == 0
    assert capsys.readouterr().out.count("already there") == 1 + 2 * 3
    assert weights.stat().st_mtime_ns == before


def plans(arguments: list[str]):
    options = quickstart.parse(arguments)
    data = options.output / "datasets" / "digits"
    runs = quickstart.plan(options)
    return runs, [quickstart.training(run, runs[0], data) for run in runs]


def test_only_what_depends_on_a_change_is_trained_again(demo):
    output, arguments, _ = demo
    assert [job.is_done() for job in plans(arguments)[1]] == [True, True, True]
    assert [job.is_done() for job in plans([*arguments, "--iterations=4"])[1]] == [True, False, False]
    teacher = output / "runs" / "teacher" / "student_final.pth"
    content = teacher.read_bytes()
    try:
        teacher.write_bytes(content + b"x")
        assert [job.is_done() for job in plans(arguments)[1]] == [True, True, False]
    finally:
        teacher.write_bytes(content)
    seeds = plans([*arguments, "--seeds", "0", "1"])[1]
    assert [job.is_done() for job in seeds] == [True, True, True, False, False]
    assert [job.needs for job in seeds] == [[], [], ["teacher"], [], ["teacher"]]


def test_a_run_of_another_configuration_is_set_aside_and_an_equal_one_resumed(demo, tmp_path):
    arguments = demo[1]
    run, job = (part[1] for part in plans([*arguments, "--iterations=4"]))
    assert "--resume" in job.command
    directory = run.directory
    kept = {item.name for item in directory.iterdir()}
    try:
        assert job.before().endswith(f"now in {directory / 'previous_1'}")
        assert not run.weights.exists()
        assert (directory / "previous_1" / "student_final.pth").is_file()
        (directory / "model_0000001.pth").write_bytes(b"a checkpoint of this run")
        assert job.before() == ""
        assert (directory / "model_0000001.pth").is_file()
        assert not (directory / "previous_2").exists()
    finally:
        (directory / "model_0000001.pth").unlink()
        for item in (directory / "previous_1").iterdir():
            item.rename(directory / item.name)
        (directory / "previous_1").rmdir()
    assert {item.name for item in directory.iterdir()} == kept


def test_a_failed_training_ends_everything_with_its_last_lines(demo, job, capsys, monkeypatch):
    runs = plans(demo[1])[0][:1]
    broken = job(
        "teacher", "import sys\nprint('error: image 1.png cannot be decoded', file=sys.stderr)\nsys.exit(2)"
    )
    monkeypatch.setattr(quickstart, "training", lambda run, teacher, data: broken)
    monkeypatch.setattr(quickstart, "plan", lambda options: runs)
    monkeypatch.setattr(quickstart, "test_evaluation", lambda run, data: job("test", needs=["teacher"]))
    assert quickstart.main(demo[1]) == 2
    said = capsys.readouterr()
    assert "error: teacher ended with status 2" in said.err
    assert "image 1.png cannot be decoded" in said.err
    assert str(broken.console) in said.err
    assert "test: done" not in said.out


def test_two_quickstarts_do_not_share_a_directory(tmp_path, capsys):
    with training_runs.locked(tmp_path):
        assert quickstart.main([f"--output={tmp_path}"]) == 2
    assert "is in use by another quick start" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert quickstart.main([f"--output={tmp_path / 'file'}"]) == 2
    assert "cannot be used" in capsys.readouterr().err


def test_an_interruption_says_how_to_continue(tmp_path, capsys, monkeypatch):
    def interrupted(options, lock):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "quickstart", interrupted)
    assert quickstart.main([f"--output={tmp_path}", "--seeds", "0", "1"]) == 130
    assert f"--output={tmp_path} --seeds 0 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--seeds", "1", "1"], ["--seeds", "-1"], ["--jobs", "0"], ["--images", "0"]]
)
def test_wrong_arguments_are_refused(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        quickstart.main([f"--output={tmp_path}", *wrong])
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_several_seeds_are_reported_one_by_one_and_without_flattery(tmp_path, monkeypatch):
    class FakeRun(quickstart.Run):
        def test_results(self):
            value = {"teacher": 50.0, "student": 30.0, "mokd": (33.0, 29.0, 31.0)[self.seed]}[self.model]
            return {"AP": value, "AP50": value + 10, "AP75": value}

    monkeypatch.setattr(quickstart, "Run", FakeRun)
    options = quickstart.parse([f"--output={tmp_path}", "--seeds", "0", "1", "2"])
    numbers = dict.fromkeys(options.task.models, 1)
    quickstart.write_results(options, quickstart.plan(options), numbers, numbers, 300)
    text = (tmp_path / "results.md").read_text()
    assert "| student, MoKD |" in text
    assert "mean over 3 seeds" in text
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["1", "30.0", "29.0", "-1.0", "40.0", "39.0", "-1.0"] in cells
    # differences 3, -1, 1: mean 1, standard deviation 2, standard error 2 / sqrt(3)
    assert "+1.0 AP on average, ± 1.2 (standard error over 3 seeds); better with 2 of 3 seeds" in text
    assert json.loads((tmp_path / "results.json").read_text())["mokd_minus_alone"]["AP"] == [3.0, -1.0, 1.0]


def test_both_students_differ_in_nothing_but_the_method(tmp_path):
    _, student, mokd = quickstart.plan(quickstart.parse([f"--output={tmp_path}", "--seeds", "5"]))
    assert student.config.model == mokd.config.model.student
    for section in ("dataloader", "optimizer", "lr_multiplier"):
        assert student.config[section] == mokd.config[section]
    assert student.config.train.max_iter == mokd.config.train.max_iter
    assert student.config.train.seed == mokd.config.train.seed == mokd.config.dataloader.train.seed == 5


# plot_dynamics


@pytest.fixture
def logged(tmp_path) -> Path:
    directory = tmp_path / "a run"
    directory.mkdir()
    lines = [{"iteration": i, "loss_a": 1.0 + i, "loss_b": 2.0, "pi/a": 0.4, "pi/b": 0.6} for i in range(3)]
    (directory / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_plot_dynamics_writes_a_picture(logged, tmp_path, capsys):
    picture = tmp_path / "new" / "dynamics.png"
    assert plot_dynamics.main([str(logged), str(logged), "--labels", "x", "y", "--output", str(picture)]) == 0
    assert capsys.readouterr().out.strip() == str(picture)
    height, width = imread(picture).shape[:2]
    assert width > height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x.jpg"], "must end with .png"),
        (["--output", "x.png", "--labels", "a", "b"], "2 names for 1 runs"),
        (["missing", "--output", "x.png"], "missing is no run's output directory"),
    ],
)
def test_plot_dynamics_names_the_mistake(logged, capsys, arguments, message):
    assert plot_dynamics.main([str(logged), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message in said


def test_plot_dynamics_says_where_nothing_is_logged(logged, tmp_path, capsys):
    (logged / "metrics.json").write_text('{"iteration": 1, "lr": 0.1}\n')
    assert plot_dynamics.main([str(logged), "--output", str(tmp_path / "x.png")]) == 2
    assert "none of the runs has logged" in capsys.readouterr().err
