"""Comparing methods: the grid, what its runs share, resuming, GPUs, and a real grid on next to nothing."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.image import imread
from omegaconf import OmegaConf

from mokd_det.config import as_override, load_config
from mokd_det.data.digits import generate
from mokd_det.errors import ConfigError
from mokd_det.evaluation.method_comparison import MethodRuns, RunResult
from mokd_det.experiments import compare_methods, method_grid, run_queue, training_runs
from mokd_det.tools.compare_methods import main, parse
from mokd_det.visualization import comparison_figure

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart" / "mokd.py"


@pytest.fixture
def teacher(tmp_path) -> Path:
    file = tmp_path / "a teacher's file.pth"
    file.write_bytes(b"weights")
    return file


def plan(*arguments: object, methods: str = "none vkd mokd", config: Path = CONFIG):
    given = ["--config", config, "--methods", *methods.split(), *arguments]
    options = parse([str(item) for item in given])
    found = method_grid.read_methods(options.methods_file, options.methods)
    return method_grid.plan(options, found, options.teacher)


# The grid

ALL = "none token_matching token_matching_amortized vkd vkd_amortized mokd_fixed mokd vkd@16"


def test_runs_differ_in_method_and_balancer_only(tmp_path, teacher):
    runs = plan("--output", tmp_path, "--teacher", teacher, "--seeds", 4, methods=ALL)
    first = None
    for run in runs:
        content = OmegaConf.to_container(run.config, resolve=False)
        for key in ("method", "teacher_checkpoint"):
            content["model"].pop(key)
        balancer, objectives = content.pop("balancer"), content.pop("objectives")
        content["train"].pop("output_dir")
        assert content["train"]["seed"] == content["dataloader"]["train"]["seed"] == 4
        first = first or (content, objectives["task"])
        assert (content, objectives["task"]) == first
        if run.method.name == "none":
            assert objectives["distill"] is None and run.teacher is None
        else:
            assert objectives["distill"] == ["loss_distill_*"]
            assert run.config.model.teacher_checkpoint == str(teacher)
        if balancer["_target_"].endswith("FixedWeights") and run.method.name != "none":
            assert balancer["weights"] == {"distill": 16.0 if "@" in run.method.name else 4.0, "task": 1.0}
    assert [type_name(run.config.balancer) for run in runs] == [
        *["FixedWeights"] * 2,
        "Amortized",
        "FixedWeights",
        "Amortized",
        "FixedWeights",
        "Amortized",
        "FixedWeights",
    ]
    assert {type_name(run.config.model.method) for run in runs} == {
        "NoDistillation",
        "TokenMatching",
        "VkD",
        "MoKD",
    }
    assert len({run.directory for run in runs}) == len({run.name for run in runs}) == len(runs) == 8


def type_name(node) -> str:
    return node["_target_"].rsplit(".", 1)[-1]


def test_mokd_of_the_grid_is_mokd_of_the_config(tmp_path, teacher):
    (run,) = plan("--output", tmp_path, "--teacher", teacher, "--seeds", 0, methods="mokd")
    config = load_config(CONFIG)
    assert instantiate(run.config.balancer).__dict__.keys() == instantiate(config.balancer).__dict__.keys()
    for key, value in config.balancer.items():
        assert key == "_target_" or run.config.balancer[key] == value
    assert run.config.objectives == config.objectives
    assert type_name(run.config.model.method) == "MoKD" and len(run.config.model.method) == 1


def test_equal_seeds_give_equal_first_weights(tmp_path, teacher):
    runs = plan("--output", tmp_path, "--teacher", teacher, "--seeds", 3, methods="none token_matching mokd")
    students = []
    for run in runs:
        run.config.model.teacher_checkpoint = ""
        torch.manual_seed(run.seed)
        students.append(instantiate(run.config.model).student.state_dict())
    for other in students[1:]:
        assert all(torch.equal(students[0][key], other[key]) for key in students[0])


def test_a_fixed_weight_of_the_task_is_that_of_each_of_its_objectives(tmp_path, teacher):
    objectives = (
        "objectives={distill: ['loss_distill_*'], cls: ['loss_ce*'], box: ['loss_bbox*', 'loss_giou*']}"
    )
    runs = plan(
        "--output", tmp_path, "--teacher", teacher, "--seeds", 0, "--set", objectives, methods="none vkd"
    )
    assert runs[0].config.balancer.get("weights") is None
    assert runs[1].config.balancer.weights == {"distill": 4.0, "cls": 1.0, "box": 1.0}


def methods_file(path: Path, **entry: object) -> Path:
    settings = "".join(f", {key}={value!r}" for key, value in entry.items())
    path.write_text(
        "from mokd_det.balancing import FixedWeights\n"
        "from mokd_det.distillation import VkD\n"
        "from detectron2.config import LazyCall as L\n"
        "balancer = L(FixedWeights)(weights=dict(distill=4.0, task=1.0))\n"
        f"methods = dict(own=dict(label='own', method=L(VkD)(), balancer=balancer{settings}))\n"
    )
    return path


def test_a_method_may_bring_settings_of_its_own(tmp_path, teacher):
    groups = {"distill": {"loss_distill_patch": 25.0, "loss_distill_[nh]*": 1.0}, "task": ["loss_[cbg]*"]}
    file = methods_file(tmp_path / "methods.py", settings={"optimizer.lr": 4e-3, "objectives": groups})
    given = ("--output", tmp_path, "--teacher", teacher, "--seeds", 0, "--methods-file", file)
    (run,) = plan(*given, methods="own")
    assert run.config.optimizer.lr == 4e-3
    assert OmegaConf.to_container(run.config.objectives) == groups
    assert run.config.balancer.weights == {"distill": 4.0, "task": 1.0}
    assert (
        compare_methods.own_settings([run])
        == ", and these settings of a method's own: own optimizer.lr=0.004"
    )
    assert compare_methods.own_settings([replace(run, method=replace(run.method, settings={}))]) == ""


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"seetings": {}}, "'own' must have label, method and balancer, may have settings"),
        ({"settings": ["optimizer.lr"]}, "settings of 'own' must map keys of a config to values"),
        ({"settings": {"optimizer.lrr": 1.0}}, r"optimizer\.lrr.*did you mean"),
    ],
)
def test_wrong_settings_of_a_method_are_named(tmp_path, teacher, entry, message):
    file = methods_file(tmp_path / "methods.py", **entry)
    with pytest.raises(ConfigError, match=message):
        plan("--output", tmp_path, "--teacher", teacher, "--methods-file", file, methods="own")


def test_several_students_and_seeds_come_seed_by_seed(tmp_path, teacher):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    text = CONFIG.read_text().replace("from .common", "from .configs.quickstart.common")
    other = tmp_path / "wide.py"
    other.write_text(text.replace("from ..common", "from .configs.common"))
    runs = plan(
        "--config",
        CONFIG,
        other,
        "--seeds",
        0,
        1,
        "--output",
        tmp_path,
        "--teacher",
        teacher,
        methods="none mokd",
    )
    assert [(run.seed, run.student, run.method.name) for run in runs] == [
        (seed, student, name) for seed in (0, 1) for student in ("mokd", "wide") for name in ("none", "mokd")
    ]
    assert runs[2].name == "wide: student alone (seed 0)"


@pytest.mark.parametrize(
    "value",
    [
        "plain/path_1.pth",
        "with space, {comma}: [x]",
        "it's \\ quoted\\",
        "${a}",
        "1e3",
        "null",
        ".5",
        "nAn",
        "",
        1,
        2.5,
        1e-8,
        True,
        None,
        [1, "a b", [None]],
        {"a": {"b": "c'd"}, "e": []},
    ],
)
def test_overrides_survive_the_command_line(value):
    text = as_override("key", value)
    assert OverridesParser.create().parse_override(text).value() == value


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": "none vdk"}, "has no method 'vdk'; known here: mokd, mokd_fixed"),
        ({"methods": "mokd@4"}, "the balancer of 'mokd' has no weights by name"),
        ({"methods": "vkd@much"}, "'much' is not a number"),
        ({"config": ROOT / "configs" / "quickstart" / "student.py"}, "model must be a Distiller"),
        ({"more": ["--set", "objectives={all: ['loss_*']}"]}, "must have 'distill'"),
        ({"more": ["--set", "dataloader.test=null", "dataloader.evaluator=null"]}, "are needed to compare"),
        ({"more": ["--set", "optimiser.lr=1"]}, "unknown config key 'optimiser'"),
        ({"more": ["--methods-file", "nowhere.py"]}, "methods file 'nowhere.py' does not exist"),
    ],
)
def test_mistakes_are_named_before_anything_runs(tmp_path, teacher, change, message):
    more = change.pop("more", [])
    with pytest.raises(ConfigError, match=message):
        plan("--output", tmp_path, "--teacher", teacher, *more, **change)


def test_a_teacher_that_is_not_there_is_named(tmp_path, capsys):
    arguments = ["--config", str(CONFIG), "--methods", "none", "mokd", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--teacher", "nowhere.pth"]) == 2
    assert "error: --teacher nowhere.pth does not exist; with --teacher-config" in capsys.readouterr().err
    assert main([*arguments, "--set", "model.teacher_checkpoint=gone.pth"]) == 2
    assert "error: teacher checkpoint gone.pth of the config does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--seeds", "1", "1"], "different numbers"),
        (["--jobs", "0"], "1 or more"),
        (["--methods", "vkd", "vkd"], "twice"),
        (["--baseline", "mokd"], "none of --methods"),
        (["--config", "a/x.py", "b/x.py"], "called alike"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, capsys, wrong, message):
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(CONFIG), "--methods", "none", "--output", str(tmp_path), *wrong])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


# The teacher


def teacher_jobs(options):
    own = method_grid.plan_teacher(options)
    methods = method_grid.read_methods(options.methods_file, options.methods)
    runs = method_grid.plan(options, methods, own.weights)
    return own, [(job.name, list(job.needs)) for job in compare_methods.make_jobs(options, runs, own)]


def test_the_teacher_is_trained_if_it_is_not_there(tmp_path, teacher):
    base = ["--config", str(CONFIG), "--methods", "none", "mokd", "--seeds", "0", "--output", str(tmp_path)]
    base += ["--teacher-config", str(CONFIG.with_name("teacher.py")), "--test-dataset", "digits_test"]
    students = [
        ("student alone (seed 0)", []),
        ("student alone (seed 0): test", ["student alone (seed 0)"]),
        ("MoKD (seed 0)", []),
        ("MoKD (seed 0): test", ["MoKD (seed 0)"]),
    ]
    there = parse([*base, "--teacher", str(teacher)])
    own, jobs = teacher_jobs(there)
    assert own.weights == teacher
    assert jobs == [("teacher: test", []), *students]
    own, jobs = teacher_jobs(parse([*base, "--teacher", "nowhere.pth"]))
    assert own.weights == tmp_path / "runs" / "teacher" / "student_final.pth"
    students[2] = ("MoKD (seed 0)", ["teacher"])
    assert jobs == [("teacher", []), ("teacher: test", ["teacher"]), *students]
    # Once begun it stays the teacher of this comparison, even if the other one appears later.
    own.run.directory.mkdir(parents=True)
    assert method_grid.plan_teacher(there).weights == teacher
    (own.run.directory / training_runs.RECORD).write_text("{}")
    assert method_grid.plan_teacher(there) == own


# Devices


def test_gpus_are_shared_out(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert compare_methods.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert compare_methods.visible_gpus() == ["3", "5"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compare_methods.visible_gpus() == []


def test_each_worker_keeps_its_device(tmp_path):
    code = "import os, time\nprint(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\ntime.sleep(.5)"
    jobs = [
        run_queue.Job(str(i), [sys.executable, "-S", "-E", "-c", code], tmp_path / f"{i}.txt")
        for i in range(4)
    ]
    devices = [{"CUDA_VISIBLE_DEVICES": name} for name in "ab"]
    run_queue.RunQueue(jobs, 2, dict(os.environ), stream=io.StringIO(), worker_environments=devices).run()
    used = [(tmp_path / f"{i}.txt").read_text().strip() for i in range(4)]
    assert sorted(used[:2]) == sorted(used[2:]) == ["a", "b"]
    with pytest.raises(ValueError, match="2 worker environments for 3 workers"):
        run_queue.RunQueue(jobs, 3, {}, worker_environments=devices)


# The whole


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """(output directory, arguments, what it printed) of a real grid: two methods, one seed, two iterations."""
    root = tmp_path_factory.mktemp("compare")
    generate("digits", root / "datasets", counts={"train": 8, "val": 2, "test": 2})
    config = load_config(CONFIG)
    torch.manual_seed(0)
    teacher = root / "teacher.pth"
    torch.save({"model": instantiate(config.model.teacher).state_dict()}, teacher)
    arguments = [
        "--config",
        CONFIG,
        "--methods",
        "none",
        "mokd",
        "--seeds",
        "0",
        "--output",
        root / "out (1), a",
    ]
    arguments += ["--teacher", teacher, "--test-dataset", "digits_test", "--jobs", "2", "--set"]
    arguments += ["train.max_iter=2", "train.eval_period=1", "dataloader.train.total_batch_size=2"]
    arguments = [str(item) for item in arguments]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setenv("DETECTRON2_DATASETS", str(root / "datasets"))
        status = main(arguments)
    torch.set_num_threads(threads)
    assert status == 0, said.getvalue()
    return root / "out (1), a", arguments, said.getvalue()


def test_a_grid_from_nothing_to_the_table_and_the_picture(grid):
    output, arguments, said = grid
    table = (output / "comparison.md").read_text()
    assert table in said
    assert "| student alone" in table and "| MoKD" in table
    assert "one pair of runs cannot tell a gain from chance" in table
    assert "Tuning: no method got a search of its own" in table
    assert f"--teacher {arguments[arguments.index('--teacher') + 1]}" in table
    rows = list(csv.DictReader(io.StringIO((output / "comparison.csv").read_text())))
    assert [(row["method"], row["seeds"], row["verdict"]) for row in rows] == [
        ("none", "1", "baseline"),
        ("mokd", "1", "unresolved"),
    ]
    content = json.loads((output / "comparison.json").read_text())
    assert content["final_on"] == "digits_test"
    for run in content["runs"]:
        directory = output / run["directory"]
        assert run["iterations"] == [1, 2] and len(run["validation"]) == 2
        test = json.loads((directory / "test" / "results.json").read_text())
        assert run["final"] == test["bbox"]["AP"]
        assert "digits_test" in (directory / "test" / "console.txt").read_text()
        logged = load_config(directory / "config.yaml")
        assert ("distill" in logged.objectives) and (logged.objectives.distill is None) is (
            run["method"] == "none"
        )
    assert imread(output / "comparison.png")[..., :3].std() > 0.05


def test_a_finished_run_is_not_repeated(grid, capsys, monkeypatch):
    output, arguments, _ = grid
    monkeypatch.setenv("DETECTRON2_DATASETS", str(output.parent / "datasets"))
    weights = output / "runs" / "mokd" / "mokd_seed0" / "student_final.pth"
    before = weights.stat().st_mtime_ns
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("already there") == 4
    assert weights.stat().st_mtime_ns == before


def jobs_of(arguments: list[str]):
    options = parse(arguments)
    methods = method_grid.read_methods(options.methods_file, options.methods)
    runs = method_grid.plan(options, methods, options.teacher)
    teacher = method_grid.plan_teacher(options)
    return {job.name: job for job in compare_methods.make_jobs(options, runs, teacher)}


def test_only_what_a_change_touches_is_run_again(grid):
    _, arguments, _ = grid

    def done(more: list[str]) -> dict[str, bool]:
        return {
            name: job.is_done() for name, job in jobs_of(arguments + more).items() if ": test" not in name
        }

    assert set(done([]).values()) == {True}
    # Another seed and another method are added; what is there stays.
    more = done(["dataloader.train.num_workers=0", "--seeds", "0", "1"])
    assert more == {name: "seed 0" in name for name in more} and len(more) == 4
    # Another length concerns all of them, another teacher those that use it.
    assert set(done(["train.max_iter=3"]).values()) == {False}
    teacher = Path(arguments[arguments.index("--teacher") + 1])
    content = teacher.read_bytes()
    try:
        teacher.write_bytes(content + b"x")
        assert done([]) == {"student alone (seed 0)": True, "MoKD (seed 0)": False}
    finally:
        teacher.write_bytes(content)


# The picture


def fake(name: str, offset: float, seeds: int = 3) -> MethodRuns:
    iterations = list(range(50, 601, 50))
    runs = {}
    for seed in range(seeds):
        curve = [offset + 40 * (1 - np.exp(-i / 200)) + seed for i in iterations]
        runs[seed] = RunResult(curve[-1] - 1, iterations, curve, 0.1)
    return MethodRuns(name, name.upper(), runs)


def test_the_figure_shows_bands_intervals_and_every_seed():
    methods = [fake("none", 0.0), fake("vkd", 2.0)]
    students = {"narrow": methods, "wide": methods}
    figure = comparison_figure(
        students, references={"narrow": 30.0, "wide": 31.0}, baseline="none", title="T"
    )
    left, right = figure.axes[:2]
    assert len(figure.axes) == 4
    assert left.get_title(loc="left") == "narrow: AP on the validation data"
    low, high = (band.get_paths()[0].vertices[:, 1] for band in left.collections[:2])
    assert low.min() == pytest.approx(min(methods[0].runs[0].curve)) and high.max() == pytest.approx(
        max(methods[1].runs[2].curve)
    )
    dots = [line for line in right.lines if line.get_marker() == "o"]
    assert [sorted(line.get_xdata()) for line in dots] == [sorted(m.finals().values()) for m in methods]
    means = [line.get_xdata()[0] for line in right.lines if line.get_marker() == "D"]
    assert means == pytest.approx([np.mean(list(m.finals().values())) for m in methods])
    assert len(right.containers) == 2
    single = comparison_figure({"s": [fake("none", 0.0, 1)]}, references={"s": 1.0}, baseline="none")
    assert len(single.axes[1].containers) == 0
