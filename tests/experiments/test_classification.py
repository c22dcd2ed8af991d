"""The quick start and the comparison of methods, on classifiers."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from matplotlib.image import imread

from mokd_det.config import load_config
from mokd_det.errors import ConfigError
from mokd_det.experiments import compare_methods, method_grid, quickstart
from mokd_det.tools import compare_methods as compare_tool
from mokd_det.tools import quickstart as quickstart_tool

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart_classification" / "mokd.py"
METHODS = ROOT / "configs" / "common" / "classification_methods.py"
ALL = [
    "none",
    "kd",
    "kd_amortized",
    "vkd",
    "vkd_amortized",
    "mokd_fixed",
    "mokd",
    "mokd_three_objectives",
    "kd@4",
]


@pytest.fixture
def teacher(tmp_path) -> Path:
    file = tmp_path / "teacher.pth"
    file.write_bytes(b"weights")
    return file


def grid(tmp_path: Path, teacher: Path, *arguments: str, methods=tuple(ALL)):
    given = [
        "--config",
        str(CONFIG),
        "--methods",
        *methods,
        "--methods-file",
        str(METHODS),
        "--replicates",
        "3",
        "4",
    ]
    options = compare_tool.parse([*given, "--output", str(tmp_path), "--teacher", str(teacher), *arguments])
    found = method_grid.read_methods(options.methods_file, options.methods)
    return options, method_grid.plan(options, found, {3: teacher, 4: teacher})


# The grid


def test_methods_change_method_taps_and_balance_only(tmp_path, teacher):
    _, runs = grid(tmp_path, teacher)
    runs = [run for run in runs if run.replicate == 3]
    first = runs[0].config
    for run in runs:
        assert run.config.model.student == first.model.student
        for section in ("dataloader", "optimizer", "lr_multiplier"):
            assert run.config[section] == first[section]
        reads = {"logits"} if run.method.name.startswith("kd") else {"pooled", "logits"}
        if run.method.name != "none":
            assert set(run.config.model.taps) == reads
    groups = {run.method.name: run.config.objectives for run in runs}
    assert groups["none"].distill is None
    assert groups["mokd"].distill == ["loss_distill_*"]
    three = {"distill": ["loss_distill_kd_*"], "kl": ["loss_distill_kl_*"], "task": ["loss_cls"]}
    assert groups["mokd_three_objectives"] == three
    weights = {run.method.name: run.config.balancer.get("weights") for run in runs}
    assert weights["kd"] == {"distill": 1.0, "task": 1.0} and weights["kd@4"] == {"distill": 4.0, "task": 1.0}


def test_every_method_is_built(tmp_path, teacher):
    for run in grid(tmp_path, teacher)[1]:
        run.config.model.teacher_checkpoint = ""
        instantiate(run.config.model)


def test_the_metric_fits_the_configs(tmp_path, teacher):
    _, runs = grid(tmp_path, teacher, methods=["none", "mokd"])
    mains = {run.main_metric for run in runs}
    assert [run.config.dataloader.train.dataset.seed for run in runs] == [3, 3, 4, 4]
    assert compare_methods.choose_metric(None, mains) == "top1"
    assert compare_methods.choose_metric("top5", mains) == "top5"
    with pytest.raises(ConfigError, match="--metric AP50: these configs can be compared by top1, top5"):
        compare_methods.choose_metric("AP50", mains)
    other = ["--config", str(CONFIG), str(ROOT / "configs" / "quickstart" / "student.py")]
    with pytest.raises(SystemExit):
        compare_tool.parse([*other, "--metric", "ece", "--methods", "none", "--output", "x"])


def test_the_test_split_and_the_data_behind_it(tmp_path, teacher):
    _, runs = grid(tmp_path, teacher, "--test-dataset", "test", methods=["none", "mokd"])
    assert compare_methods.test_overrides(runs[0], "test") == ["dataloader.test.dataset.split=test"]
    found = compare_methods.data_identity(runs[0].config)
    assert set(found) == {"train data", "test data"} and found["train data"] != found["test data"]
    assert compare_methods.data_identity(runs[1].config) == found


def test_records_of_replicates_with_their_own_draws_belong_together(tmp_path, teacher):
    _, runs = grid(tmp_path, teacher, "--draw", "7", methods=["none"])
    assert [run.config.dataloader.train.dataset.seed for run in runs] == [3, 4]
    of_draws, of_sources = (
        [compare_methods.data_identity(change(run.config))["train data"] for run in runs]
        for change in (lambda config: config, compare_methods.drawn_from)
    )
    assert of_draws[0] != of_draws[1] and of_sources[0] == of_sources[1]


@pytest.mark.slow
def test_a_grid_of_classifiers(tmp_path, capsys):
    torch.manual_seed(0)
    teacher = tmp_path / "teacher.pth"
    config = load_config(CONFIG)
    torch.save({"model": instantiate(config.model.teacher).state_dict()}, teacher)
    arguments = [
        "--config",
        CONFIG,
        "--methods",
        "none",
        "mokd",
        "--methods-file",
        METHODS,
        "--replicates",
        "2",
    ]
    arguments += ["--output", tmp_path / "out", "--teacher", teacher, "--test-dataset", "test"]
    arguments += ["--set", "train.max_iter=2", "train.eval_period=1"]
    assert compare_tool.main([str(item) for item in arguments]) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    assert "| top1 |" in " ".join(text.split())  # columns are padded
    assert "top1: accuracy in percent of the last weights on test" in text
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["metric"] == "top1" and [len(run["validation"]) for run in content["runs"]] == [2] * 4
    assert imread(tmp_path / "out" / "comparison.png")[..., :3].std() > 0.05


# The quick start


def test_the_quick_start_trains_five_models_from_one_teacher(tmp_path):
    options = quickstart_tool.chosen([f"--output={tmp_path}", "--task=classification", "--seeds", "0", "1"])
    runs = quickstart.plan(options)
    names = [(run.model, run.seed) for run in runs]
    students = ["student", "kd", "vkd", "mokd"]
    assert names == [("teacher", 0), *((model, seed) for seed in (0, 1) for model in students)]
    jobs = [quickstart.training(run, runs, None) for run in runs]
    assert [bool(job.needs) for job in jobs] == [False, *[False, True, True, True] * 2]
    for run in runs:
        assert run.config.dataloader.train.dataset.per_class == 30
        assert run.config.train.seed == run.config.dataloader.train.seed == run.seed
    less = quickstart_tool.chosen([f"--output={tmp_path}", "--task=classification", "--images=100"])
    assert {run.config.dataloader.train.dataset.per_class for run in quickstart.plan(less)} == {10}


def test_images_are_the_same_number_of_each_class(tmp_path, capsys):
    assert quickstart_tool.main([f"--output={tmp_path}", "--task=classification", "--images=105"]) == 2
    assert "error: --images 105: must be a multiple of 10" in capsys.readouterr().err


def test_every_distilled_student_is_compared_with_the_one_alone(tmp_path, monkeypatch):
    values = {"teacher": 99.0, "student": 80.0, "kd": 84.0, "vkd": 79.0, "mokd": 88.0}

    class FakeRun(quickstart.Run):
        def test_results(self):
            value = values[self.model] + self.seed
            return {"top1": value, "top5": 100.0, "ece": 5.0}

    monkeypatch.setattr(quickstart, "Run", FakeRun)
    options = quickstart_tool.chosen([f"--output={tmp_path}", "--task=classification", "--seeds", "0", "1"])
    numbers = dict.fromkeys(options.task.models, 1)
    quickstart.write_results(options, quickstart.plan(options), numbers, numbers, 599)
    text = (tmp_path / "results.md").read_text()
    for said in (
        "- KD minus alone: +4.0 top1",
        "- VkD minus alone: -1.0 top1",
        "- MoKD minus alone: +8.0 top1",
    ):
        assert said in text
    assert "on 599 test images, which no choice was made on; of the students the mean over 2 seeds" in text
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["vkd_minus_alone"]["top1"] == [-1.0, -1.0]
    assert content["runs"][1]["classification"]["ece"] == 5.0


@pytest.mark.slow
def test_a_whole_quick_start_of_classifiers(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "TIMED_IMAGES", 3)
    threads = torch.get_num_threads()
    arguments = [f"--output={tmp_path}", "--task=classification", "--images=40"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert quickstart_tool.main([*arguments, "--iterations=2", "--teacher-iterations=2"]) == 0
    torch.set_num_threads(threads)
    content = json.loads((tmp_path / "results.json").read_text())
    assert [run["model"] for run in content["runs"]] == ["teacher", "student", "kd", "vkd", "mokd"]
    assert content["test_images"] == 599
    assert all({"top1", "top5", "ece", "top1-9"} <= set(run["classification"]) for run in content["runs"])
    table = (tmp_path / "results.md").read_text()
    assert table in said.getvalue() and "| student, VkD |" in " ".join(table.split())  # columns are padded
    assert imread(tmp_path / "curves.png")[..., :3].std() > 0.05
    assert not (tmp_path / "predictions.png").exists()
