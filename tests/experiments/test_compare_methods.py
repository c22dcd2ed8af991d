"""Comparing methods: the grid, what its runs share, resuming, GPUs, and a real grid on next to nothing."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
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
from mokd_det.experiments.instruction_sets import half_of
from mokd_det.experiments.records import ReplicateRecord, write_record
from mokd_det.tools.compare_methods import main
from mokd_det.tools.parsers.compare_methods import parse
from mokd_det.visualization import comparison_figure
from tests.forks import NoServer

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
    return plan_of(options)[1]


def plan_of(options):
    """(teachers, runs) of a command line."""
    methods = method_grid.read_methods(options.methods_file, options.methods)
    teachers = method_grid.plan_teachers(options)
    return teachers, method_grid.plan(options, methods, {key: one.weights for key, one in teachers.items()})


# The grid

ALL = "none token_matching token_matching_amortized vkd vkd_amortized mokd_fixed mokd vkd@16"


def test_runs_differ_in_method_and_balancer_only(tmp_path, teacher):
    runs = plan("--output", tmp_path, "--teacher", teacher, "--replicates", 4, 5, methods=ALL)[:8]
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
    run, _ = plan("--output", tmp_path, "--teacher", teacher, "--replicates", 0, 1, methods="mokd")
    config = load_config(CONFIG)
    assert instantiate(run.config.balancer).__dict__.keys() == instantiate(config.balancer).__dict__.keys()
    for key, value in config.balancer.items():
        assert key == "_target_" or run.config.balancer[key] == value
    assert run.config.objectives == config.objectives
    assert type_name(run.config.model.method) == "MoKD" and len(run.config.model.method) == 1


def test_equal_seeds_give_equal_first_weights(tmp_path, teacher):
    runs = plan(
        "--output", tmp_path, "--teacher", teacher, "--replicates", 3, 4, methods="none token_matching mokd"
    )[:3]
    students = []
    for run in runs:
        run.config.model.teacher_checkpoint = ""
        torch.manual_seed(run.replicate)
        students.append(instantiate(run.config.model).student.state_dict())
    for other in students[1:]:
        assert all(torch.equal(students[0][key], other[key]) for key in students[0])


def test_a_fixed_weight_of_the_task_is_that_of_each_of_its_objectives(tmp_path, teacher):
    objectives = (
        "objectives={distill: ['loss_distill_*'], cls: ['loss_ce*'], box: ['loss_bbox*', 'loss_giou*']}"
    )
    runs = plan(
        "--output",
        tmp_path,
        "--teacher",
        teacher,
        "--replicates",
        0,
        1,
        "--set",
        objectives,
        methods="none vkd",
    )
    assert runs[0].config.balancer.get("weights") is None
    assert runs[1].config.balancer.weights == {"distill": 4.0, "cls": 1.0, "box": 1.0}
    assert runs[0].base == runs[1].base and runs[0].settings != runs[1].settings


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
    given = ("--output", tmp_path, "--teacher", teacher, "--replicates", 0, 1, "--methods-file", file)
    run, again = plan(*given, methods="own")
    assert run.config.optimizer.lr == 4e-3
    assert OmegaConf.to_container(run.config.objectives) == groups
    assert run.config.balancer.weights == {"distill": 4.0, "task": 1.0}
    assert run.settings == again.settings


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


def test_several_students_come_replicate_by_replicate(tmp_path, teacher):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    text = CONFIG.read_text().replace("from .common", "from .configs.quickstart.common")
    other = tmp_path / "wide.py"
    other.write_text(text.replace("from ..common", "from .configs.common"))
    runs = plan(
        "--config",
        CONFIG,
        other,
        "--replicates",
        0,
        1,
        "--output",
        tmp_path,
        "--teacher",
        teacher,
        methods="none mokd",
    )
    assert [(run.replicate, run.student, run.method.name) for run in runs] == [
        (replicate, student, name)
        for replicate in (0, 1)
        for student in ("mokd", "wide")
        for name in ("none", "mokd")
    ]
    assert runs[2].name == "wide: student alone (replicate 0)"


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
        ({"methods": "none vdk"}, "has no method 'vdk'; known here: dto_kd, mokd, mokd_fixed"),
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
    assert "error: --teacher nowhere.pth does not exist (replicate 0); with" in capsys.readouterr().err
    (tmp_path / "t0.pth").write_bytes(b"")
    assert main([*arguments, "--teacher", str(tmp_path / "t{replicate}.pth")]) == 2
    assert f"{tmp_path / 't1.pth'} does not exist (replicate 1)" in capsys.readouterr().err
    assert main([*arguments, "--set", "model.teacher_checkpoint=gone.pth"]) == 2
    assert "error: teacher checkpoint gone.pth of the config does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--replicates", "1"], "2 or more"),
        (["--replicates", "1", "1"], "different numbers"),
        (["--draw", "0"], "1 or more"),
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


def jobs_and_needs(options):
    teachers, runs = plan_of(options)
    jobs = compare_methods.make_jobs(options, runs, teachers)
    return teachers, [(job.name, list(job.needs)) for job in jobs]


def test_every_replicate_has_its_teacher_trained_if_it_is_not_there(tmp_path, teacher):
    base = [
        "--config",
        str(CONFIG),
        "--methods",
        "none",
        "mokd",
        "--replicates",
        "2",
        "--output",
        str(tmp_path),
    ]
    base += ["--teacher-config", str(CONFIG.with_name("teacher.py")), "--test-dataset", "digits_test"]

    def students(replicate: int, trained: bool):
        alone, mokd = f"student alone (replicate {replicate})", f"MoKD (replicate {replicate})"
        needs = [f"teacher (replicate {replicate})"] if trained else []
        return [(alone, []), (f"{alone}: test", [alone]), (mokd, needs), (f"{mokd}: test", [mokd])]

    there = parse([*base, "--teacher", str(teacher)])
    teachers, jobs = jobs_and_needs(there)
    assert teachers[0].weights == teachers[1].weights == teacher
    expected = [[(f"teacher (replicate {r}): test", []), *students(r, False)] for r in (0, 1)]
    assert jobs == [*expected[0], *expected[1]]
    teachers, jobs = jobs_and_needs(parse([*base, "--teacher-draw", "100"]))
    first, second = (teachers[replicate].run for replicate in (0, 1))
    assert first.weights == tmp_path / "runs" / "teacher_r0" / "student_final.pth"
    assert [one.config.train.seed for one in (first, second)] == [1000, 1001]
    assert [one.config.dataloader.train.draw for one in (first, second)] == [
        {"count": 100, "seed": seed} for seed in (0, 1)
    ]
    names = [f"teacher (replicate {r})" for r in (0, 1)]
    expected = [[(names[r], []), (f"{names[r]}: test", [names[r]]), *students(r, True)] for r in (0, 1)]
    assert jobs == [*expected[0], *expected[1]]
    # Once begun it stays the teacher of this comparison, even if the other one appears later.
    first.directory.mkdir(parents=True)
    assert method_grid.plan_teachers(there)[0].weights == teacher
    (first.directory / training_runs.RECORD).write_text("{}")
    assert method_grid.plan_teachers(there)[0].weights == first.weights
    assert method_grid.plan_teachers(there)[1].weights == teacher


# Replicates


def test_replicates_differ_in_seeds_draw_and_instruction_set_only(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for number in (0, 1):
        (tmp_path / f"t{number}.pth").write_bytes(b"weights")
    given = (
        "--output",
        tmp_path,
        "--teacher",
        tmp_path / "t{replicate}.pth",
        "--draw",
        160,
        "--teacher-cache",
    )
    runs = plan(*given, "--replicates", 2)
    for first, second in zip(runs[:3], runs[3:], strict=True):
        assert (first.settings, first.base) == (second.settings, second.base)
        assert [one.config.train.seed for one in (first, second)] == [0, 1]
        assert [one.config.dataloader.train.draw for one in (first, second)] == [
            {"count": 160, "seed": 0},
            {"count": 160, "seed": 1},
        ]
        assert (first.half.name, dict(first.environment)) == ("full", {})
        assert second.half.name == "limited" and second.half.capability == "AVX2"
        assert second.environment == {
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        }
        assert first.config.dataloader.train.views == 1
    assert [run.teacher for run in runs] == [
        teacher and tmp_path / teacher for teacher in (None, "t0.pth", "t0.pth", None, "t1.pth", "t1.pth")
    ]
    caches = [run.config.model.get("teacher_cache") for run in runs]
    assert caches[0] is None and caches[1].directory == caches[2].directory != caches[4].directory
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert plan(*given, "--replicates", 2)[3].environment["ATEN_CPU_CAPABILITY"] == "default"
    # Other settings, another digest.
    other = plan(*given, "--replicates", 2, "--set", "optimizer.lr=1.0")
    assert {run.settings for run in other}.isdisjoint(run.settings for run in runs)


def test_methods_of_other_taps_have_caches_of_their_own(tmp_path):
    # They may train at once, and each would empty the other's.
    (tmp_path / "teacher.pth").write_bytes(b"weights")
    folder = ROOT / "configs" / "few_images"
    given = (
        "--output",
        tmp_path,
        "--teacher",
        tmp_path / "teacher.pth",
        "--teacher-cache",
        "--replicates",
        2,
    )
    methods = ("--methods-file", folder / "methods.py")
    runs = plan(*given, *methods, methods="none kd vkd similarity", config=folder / "cifar10.py")
    _, kd, vkd, similarity = (run.config.model.get("teacher_cache") for run in runs[:4])
    assert vkd.directory == similarity.directory != kd.directory


@pytest.mark.slow
def test_the_limit_reaches_pytorch(monkeypatch):
    half = half_of(1)
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **half.environment}, capture_output=True, text=True
    )
    assert found.stdout.strip() == half.capability


def test_a_draw_needs_data_to_draw_from():
    config = OmegaConf.create({"dataloader": {"train": {"dataset": {"split": "train"}}}})
    assert method_grid.draw_overrides(config, None, 3, "--draw") == []
    with pytest.raises(ConfigError, match=r"--draw 5: a classifier's images are drawn by .*FewPerClass"):
        method_grid.draw_overrides(config, 5, 3, "--draw")


# Methods that take something from another run

CONTROLS = """
from mokd_det.balancing import MeanOf, Replay, SumNorm, Amortized
from mokd_det.distillation import MoKD
from detectron2.config import LazyCall as L

methods = dict(
    mokd=dict(label="MoKD", method=L(MoKD)(), balancer=L(Amortized)()),
    mean=dict(label="mean weight", method=L(MoKD)(), balancer=L(MeanOf)(run="{run:mokd}")),
    replayed=dict(label="replayed", method=L(MoKD)(), balancer=L(Replay)(run="{run:mokd:other}")),
    rescaled=dict(label="rescaled", method=L(MoKD)(), balancer=L(SumNorm)(balancer=L(MeanOf)(run="{run:mokd}"))),
    a=dict(label="a", method=L(MoKD)(), balancer=L(MeanOf)(run="{run:b}")),
    b=dict(label="b", method=L(MoKD)(), balancer=L(MeanOf)(run="{run:a}")),
)
"""


def test_controls_take_their_weights_from_other_runs(tmp_path, teacher):
    file = tmp_path / "methods.py"
    file.write_text(CONTROLS)
    base = ["--config", str(CONFIG), "--methods-file", str(file), "--teacher", str(teacher)]
    base += ["--output", str(tmp_path), "--replicates", "3", "--methods"]
    options = parse([*base, "replayed", "mean", "rescaled", "mokd"])
    teachers, runs = plan_of(options)
    place = {(run.method.name, run.replicate): run.directory for run in runs}
    for run in runs:
        balancer, replicate = run.config.balancer, run.replicate
        if run.method.name == "mean":
            assert balancer.run == str(place["mokd", replicate])
        elif run.method.name == "rescaled":
            assert balancer.balancer.run == str(place["mokd", replicate])
        elif run.method.name == "replayed":
            assert balancer.run == str(place["mokd", (replicate + 1) % 3])
    assert len({run.settings for run in runs}) == 4
    jobs = compare_methods.make_jobs(options, runs, teachers)
    run_queue.RunQueue(jobs, 1, {})  # needs stand before who needs them
    needs = {job.name: list(job.needs) for job in jobs}
    assert needs["mean weight (replicate 2)"] == ["MoKD (replicate 2)"]
    assert needs["replayed (replicate 2)"] == ["MoKD (replicate 0)"]
    with pytest.raises(
        ConfigError, match="'mean' takes something from the runs of 'mokd', which must be among"
    ):
        plan_of(parse([*base, "mean"]))
    with pytest.raises(ConfigError, match="a, b take something from each other in a circle"):
        plan_of(parse([*base, "a", "b"]))


# Records


def record(**changes) -> ReplicateRecord:
    values = dict(
        student="mokd", method="none", label="student alone", replicate=0, half="full", capability="AVX2",
        settings="s", base="b", own_settings={}, data={"train": "t", "test": "d"}, final_on="digits_test",
        task="bbox", values={"AP": 40.0, "AP50": 60.0}, iterations=[1, 2], curves={"AP": [1.0, 2.0]}, length=2,
        seconds_per_iteration=0.1, losses={}, weights={}, teacher={}, versions={"mokd_det": "1", "torch": "2"},
        machine="x86_64", directory="runs/x", command="",
    )  # fmt: skip
    return ReplicateRecord(**{**values, **changes})


def table_of(*more: ReplicateRecord) -> list[ReplicateRecord]:
    found = [
        record(replicate=r, values={"AP": 40.0 + r}, half="limited" if r % 2 else "full") for r in range(4)
    ]
    mokd = [
        replace(
            one,
            method="mokd",
            label="MoKD",
            settings="m",
            values={"AP": one.values["AP"] + 3 + 0.2 * one.replicate},
        )
        for one in found
    ]
    return [*found, *mokd, *more]


def test_records_of_two_machines_make_one_table(tmp_path, capsys):
    for one in table_of():
        write_record(one, tmp_path / ("a" if one.replicate < 2 else "b") / "records")
    arguments = ["--records", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "MoKD minus student alone: +3.3 AP" in said and "replicates 0, 1, 2, 3" in said
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["baseline"] == "none"
    assert main([*arguments, "--methods", "none", "vkd"]) == 2
    assert "method 'vkd' has 0 replicates; a comparison needs two or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            record(replicate=7, settings="x"),
            "mokd.none.r0.json and mokd.none.r7.json were trained with different settings",
        ),
        (record(replicate=7, data={"train": "t", "test": "x"}), "evaluated on different test images"),
        (record(replicate=7, final_on="digits_val"), "evaluated on different test images"),
        (record(replicate=7, data={"train": "x", "test": "d"}), "differ in more than the method"),
        (record(replicate=7, method="vkd", base="x"), "mokd.vkd.r7.json differ in more than the method"),
        (record(replicate=7, student="x", task="classification"), "results of different kinds"),
    ],
)
def test_records_that_do_not_belong_together(tmp_path, capsys, other, message):
    for one in table_of(other):
        write_record(one, tmp_path / "records")
    assert main(["--records", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_records_that_cannot_be_read(tmp_path, capsys):
    command = ["--output", str(tmp_path / "out"), "--records"]
    assert main([*command, str(tmp_path / "nowhere")]) == 2
    assert "there is no record" in capsys.readouterr().err
    write_record(record(), tmp_path / "a")
    write_record(record(values={"AP": 41.0}), tmp_path / "b")
    assert main([*command, str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "are two runs of one method and replicate" in capsys.readouterr().err
    (tmp_path / "a" / "mokd.none.r1.json").write_text("{}")
    assert main([*command, str(tmp_path / "a")]) == 2
    assert "mokd.none.r1.json is not a record of a comparison" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "b")]) == 2
    assert "has 1 replicates; a comparison needs two or more" in capsys.readouterr().err


def test_replicates_are_not_added_to_others_with_other_settings(tmp_path, teacher):
    runs = plan("--output", tmp_path, "--teacher", teacher, "--replicates", 2, methods="none mokd")
    write_record(record(replicate=1, settings="old"), tmp_path)  # this command trains it anew
    compare_methods.refuse_mixture(tmp_path, runs)
    write_record(record(replicate=5, settings="old"), tmp_path)
    with pytest.raises(
        ConfigError, match=r"mokd\.none\.r5\.json was trained with other settings than this command"
    ):
        compare_methods.refuse_mixture(tmp_path, runs)


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
    """(output directory, arguments, what it printed) of a real grid: two methods, two replicates, two iterations."""
    root = tmp_path_factory.mktemp("compare")
    generate("digits", root / "datasets", counts={"train": 12, "val": 2, "test": 2})
    config = load_config(CONFIG)
    torch.manual_seed(0)
    teacher = root / "teacher.pth"
    torch.save({"model": instantiate(config.model.teacher).state_dict()}, teacher)
    arguments = ["--config", CONFIG, "--methods", "none", "mokd", "--replicates", "2", "--draw", "8"]
    arguments += ["--output", root / "out (1), a", "--teacher", teacher, "--test-dataset", "digits_test"]
    arguments += ["--jobs", "2", "--teacher-cache"]
    arguments += ["--set", "train.max_iter=2", "train.eval_period=1", "train.log_period=1"]
    arguments += ["dataloader.train.total_batch_size=2"]
    arguments = [str(item) for item in arguments]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setenv("DETECTRON2_DATASETS", str(root / "datasets"))
        patch.setattr(run_queue, "ForkServer", NoServer)
        status = main(arguments)
    torch.set_num_threads(threads)
    assert status == 0, said.getvalue()
    return root / "out (1), a", arguments, said.getvalue()


def test_a_grid_from_nothing_to_the_table_and_the_picture(grid):
    output, arguments, said = grid
    table = (output / "comparison.md").read_text()
    assert table in said
    assert "| student alone" in table and "| MoKD" in table
    assert "Tuning: no method got a search of its own" in table
    assert "its own draw of the training images; all share one teacher, whose choice" in table
    assert f"--teacher {arguments[arguments.index('--teacher') + 1]}" in table
    rows = list(csv.DictReader(io.StringIO((output / "comparison.csv").read_text())))
    assert [(row["method"], row["replicates"], row["verdict"]) for row in rows] == [
        ("none", "2", "baseline"),
        ("mokd", "2", "unresolved"),
    ]
    content = json.loads((output / "comparison.json").read_text())
    assert content["final_on"] == "digits_test" and len(content["runs"]) == 4
    for run in content["runs"]:
        directory = output / run["directory"]
        assert run["iterations"] == [1, 2] and len(run["validation"]) == 2
        test = json.loads((directory / "test" / "results.json").read_text())
        assert run["final"] == pytest.approx(test["bbox"]["AP"], abs=1e-4)
        assert "digits_test" in (directory / "test" / "console.txt").read_text()
        logged = load_config(directory / "config.yaml")
        assert ("distill" in logged.objectives) and (logged.objectives.distill is None) is (
            run["method"] == "none"
        )
    assert imread(output / "comparison.png")[..., :3].std() > 0.05
    files = sorted(path.name for path in (output / "records").iterdir())
    assert files == [f"mokd.{method}.r{r}.json" for method in ("mokd", "none") for r in (0, 1)]
    assert max(path.stat().st_size for path in (output / "records").iterdir()) < 10_000
    learned = json.loads((output / "records" / "mokd.mokd.r1.json").read_text())
    assert set(learned["losses"]) == set(learned["weights"]) == {"distill", "task"}
    assert learned["half"] == half_of(1).name and learned["teacher"]["digest"]


def test_the_table_is_made_again_from_the_records_alone(grid, tmp_path):
    output, _, _ = grid
    shutil.copytree(output / "records", tmp_path / "records")
    assert (
        main(["--records", str(tmp_path / "records"), "--output", str(tmp_path), "--baseline", "none"]) == 0
    )
    again = (tmp_path / "comparison.csv").read_text().splitlines()
    assert sorted(again) == sorted((output / "comparison.csv").read_text().splitlines())


def test_a_finished_run_is_not_repeated(grid, capsys, monkeypatch):
    output, arguments, _ = grid
    monkeypatch.setenv("DETECTRON2_DATASETS", str(output.parent / "datasets"))
    weights = output / "runs" / "mokd" / "mokd_r0" / "student_final.pth"
    before = weights.stat().st_mtime_ns
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("already there") == 8
    assert weights.stat().st_mtime_ns == before


def test_only_what_a_change_touches_is_run_again(grid):
    _, arguments, _ = grid

    def done(more: list[str]) -> dict[str, bool]:
        options = parse(arguments + more)
        teachers, runs = plan_of(options)
        jobs = compare_methods.make_jobs(options, runs, teachers)
        return {job.name: job.is_done() for job in jobs if ": test" not in job.name}

    assert set(done([]).values()) == {True}
    # Another replicate is added; what is there stays.
    more = done(["dataloader.train.num_workers=0", "--replicates", "3"])
    assert more == {name: "replicate 2" not in name for name in more} and len(more) == 6
    # Another length concerns all of them, another teacher those that use it.
    assert set(done(["train.max_iter=3"]).values()) == {False}
    teacher = Path(arguments[arguments.index("--teacher") + 1])
    content = teacher.read_bytes()
    try:
        teacher.write_bytes(content + b"x")
        assert done([]) == {
            f"{label} (replicate {r})": label == "student alone"
            for r in (0, 1)
            for label in ("student alone", "MoKD")
        }
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
