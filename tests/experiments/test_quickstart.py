"""The quick start end to end on next to nothing, its statistics and its mistakes."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys

import pytest
import torch
from detectron2.config import instantiate
from matplotlib.image import imread

from mokd_det import model_zoo
from mokd_det.checkpoint import load_file, load_into
from mokd_det.engine.inference_model import load_inference_model
from mokd_det.errors import ConfigError
from mokd_det.experiments import quickstart, run_queue
from mokd_det.experiments.quickstart_tasks import Detection
from mokd_det.experiments.replicates_say import replicates_say
from mokd_det.experiments.run_queue import Job
from mokd_det.folder_lock import locked_folder
from mokd_det.tools import quickstart as tool
from tests.forks import ForkedSubprocess


@pytest.fixture
def job(tmp_path):
    def make(name: str, code: str = "pass", **options) -> Job:
        command = [sys.executable, "-S", "-E", "-c", code]
        return Job(name, command, tmp_path / f"{name}.txt", **options)

    return make


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(output directory, arguments, what it printed) of a whole quick start."""
    output = tmp_path_factory.mktemp("quickstart") / "demo"
    arguments = [f"--output={output}", "--images=40", "--iterations=3", "--teacher-iterations=3"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(output / "datasets"))
        patch.setattr(run_queue, "subprocess", ForkedSubprocess)
        patch.setattr(Detection, "counts", {"train": 60, "val": 6, "test": 6})
        with contextlib.redirect_stdout(io.StringIO()) as said:
            patch.setattr(quickstart, "TIMED_IMAGES", 3)
            assert tool.main(arguments) == 0
        torch.set_num_threads(threads)
        yield output, arguments, said.getvalue()


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
    assert "one pair of runs cannot tell a gain from chance" in table
    # what many replicates say stands before this one run, and is computed from their records
    assert (
        table.index("## What the replicates say")
        < table.index("## This run: one run")
        < table.index("| model")
    )
    finals = {
        method: [
            json.loads(file.read_text())["values"]["AP"]
            for file in sorted((model_zoo.RECORDS / "few_scenes").glob(f"*.{method}.r*.json"))
        ]
        for method in ("none", "similarity_amortized")
    }
    gains = [mokd - alone for alone, mokd in zip(*finals.values(), strict=True)]
    said_there = f"{len(gains)} replicates, AP on digits_few_test"
    assert said_there in table
    assert f"MoKD similarity, amortised minus student alone: {statistics.fmean(gains):+.1f} AP" in table
    for name in ("predictions.png", "curves.png"):
        assert str(output / name) in said
        assert imread(output / name)[..., :3].std() > 0.05
    # the students draw from scenes that lie among the other data sets
    assert (output / "datasets" / "digits_few" / "manifest.json").is_file()
    assert "about" in said and "left" in said
    for run_name in ("teacher", "student_seed0", "mokd_seed0"):
        log = (output / "runs" / run_name / "console.txt").read_text()
        assert "CPU, 1 threads per process" in log or "GPU" in log
    test_log = (output / "runs" / "mokd_seed0" / "test" / "console.txt").read_text()
    assert "digits_few_test" in test_log


def test_a_second_quickstart_repeats_no_training(demo, capsys, monkeypatch):
    output, arguments, _ = demo
    monkeypatch.setattr(quickstart, "TIMED_IMAGES", 3)
    weights = output / "runs" / "mokd_seed0" / "student_final.pth"
    before = weights.stat().st_mtime_ns
    assert tool.main(arguments) == 0
    assert capsys.readouterr().out.count("already there") == 1 + 2 * 3
    assert weights.stat().st_mtime_ns == before


def plans(arguments: list[str]):
    options = tool.chosen(arguments)
    data = options.output / "datasets" / "digits_few"
    runs = quickstart.plan(options)
    return runs, [quickstart.training(run, runs, data) for run in runs]


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
    monkeypatch.setattr(quickstart, "training", lambda run, trained, data: broken)
    monkeypatch.setattr(quickstart, "plan", lambda options: runs)
    monkeypatch.setattr(
        quickstart, "test_evaluation", lambda run, data, trained: job("test", needs=["teacher"])
    )
    assert tool.main(demo[1]) == 2
    said = capsys.readouterr()
    assert "error: teacher ended with status 2" in said.err
    assert "image 1.png cannot be decoded" in said.err
    assert str(broken.console) in said.err
    assert "test: done" not in said.out


def test_two_quickstarts_do_not_share_a_directory(tmp_path, capsys):
    with locked_folder(tmp_path, "--output"):
        assert tool.main([f"--output={tmp_path}"]) == 2
    assert "is in use by process" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert tool.main([f"--output={tmp_path / 'file'}"]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_an_interruption_says_how_to_continue(tmp_path, capsys, monkeypatch):
    def interrupted(options, lock):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "quickstart", interrupted)
    assert tool.main([f"--output={tmp_path}", "--seeds", "0", "1"]) == 130
    assert f"--output={tmp_path} --seeds 0 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--seeds", "1", "1"], ["--seeds", "-1"], ["--jobs", "0"], ["--images", "0"]]
)
def test_wrong_arguments_are_refused(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main([f"--output={tmp_path}", *wrong])
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_several_seeds_are_reported_one_by_one_and_without_flattery(tmp_path, monkeypatch):
    class FakeRun(quickstart.Run):
        def test_results(self):
            value = {"teacher": 50.0, "student": 30.0, "mokd": (33.0, 29.0, 31.0)[self.seed]}[self.model]
            return {"AP": value, "AP50": value + 10, "AP75": value}

    monkeypatch.setattr(quickstart, "Run", FakeRun)
    options = tool.chosen([f"--output={tmp_path}", "--seeds", "0", "1", "2"])
    numbers = dict.fromkeys(options.task.models, 1)
    quickstart.write_results(options, quickstart.plan(options), numbers, numbers, 300)
    text = (tmp_path / "results.md").read_text()
    assert "| student, MoKD |" in text
    assert "mean over 3 seeds" in text
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["1", "30.0", "29.0", "-1.0", "40.0", "39.0", "-1.0"] in cells
    # differences 3, -1, 1: mean 1, standard deviation 2, half width 4.3027 · 2 / √3 = 4.97
    assert "MoKD minus alone: +1.0 AP, unresolved: the interval from -4.0 to +6.0 includes 0." in text
    assert "3 replicates find a true difference of" in text
    assert json.loads((tmp_path / "results.json").read_text())["mokd_minus_alone"]["AP"] == [3.0, -1.0, 1.0]


def test_the_shipped_teacher_stands_where_a_trained_one_would(tmp_path):
    options = tool.chosen([f"--output={tmp_path}", "--seeds", "3"])
    assert quickstart.uses_shipped_teacher(options)
    assert not quickstart.uses_shipped_teacher(
        tool.chosen([f"--output={tmp_path}", "--teacher-iterations=9"])
    )
    teacher, student, mokd = quickstart.plan(options)
    (teacher.directory).mkdir(parents=True)
    for name in ("metrics.json", "student_final.pth"):
        (teacher.directory / name).write_text("of an earlier training")
    quickstart.place_teacher(teacher)
    assert (teacher.directory / "previous_1" / "metrics.json").is_file()
    # what the other tools do with a run's directory; a file of other classes or sizes is refused
    load_inference_model(teacher.directory / "config.yaml", teacher.weights)
    written_weights = load_file(teacher.weights)["model"].values()
    assert torch.float16 not in {value.dtype for value in written_weights}
    written = teacher.weights.stat().st_mtime_ns
    quickstart.place_teacher(teacher)
    assert teacher.weights.stat().st_mtime_ns == written
    for run in (student, mokd):
        assert run.config.dataloader.train.draw == {"count": 160, "seed": 1003}
        start = instantiate(run.config.model.student if run is mokd else run.config.model)
        loaded = load_into(start, run.config.train.init_checkpoint, on_class_mismatch="reinit")
        assert not loaded.kept and all("class_embed" in name for name, *_ in loaded.reinitialised)
    trained = [student, mokd]
    assert [quickstart.training(run, trained, tmp_path).needs for run in trained] == [[], []]
    shipped = sum(file.stat().st_size for file in model_zoo.WEIGHTS.iterdir())
    assert shipped <= 4 * 2**20


def test_more_scenes_than_there_are_cannot_be_drawn(tmp_path, capsys):
    assert tool.main([f"--output={tmp_path}", "--images=9000"]) == 2
    assert "error: --images 9000: must be at most" in capsys.readouterr().err


def test_replicates_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no record"):
        replicates_say(tmp_path, "similarity_amortized", "AP")
    with pytest.raises(ConfigError, match="no replicates of the method 'nothing'; it has none, "):
        replicates_say(model_zoo.RECORDS / "few_scenes", "nothing", "AP")


def test_both_students_differ_in_nothing_but_the_method(tmp_path):
    _, student, mokd = quickstart.plan(tool.chosen([f"--output={tmp_path}", "--seeds", "5"]))
    assert student.config.model == mokd.config.model.student
    for section in ("dataloader", "optimizer", "lr_multiplier"):
        assert student.config[section] == mokd.config[section]
    assert student.config.train.max_iter == mokd.config.train.max_iter
    assert student.config.train.seed == mokd.config.train.seed == mokd.config.dataloader.train.seed == 5
